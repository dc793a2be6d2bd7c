// Every public header, included twice by a translation unit of its own (twice.in), must compile and link with the rest.
int main() {}
