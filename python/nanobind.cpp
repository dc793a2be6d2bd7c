// nanobind's own part, all of it.
#include <nb_combined.cpp>
