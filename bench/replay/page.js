// The page of orderly-replay --html. Its data is the document that state.schema.json describes.

const LENS_CHUNKS = 16;
const ROW_HEIGHT = 13;
const MOST_ROWS = 48;
const ROUNDING_ALPHA = 0.55;

const byId = id => document.getElementById(id);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const count = value => value.toLocaleString('en-US');

function formatBytes(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let power = 0;
  while (power + 1 < units.length && bytes >= 1024 ** (power + 1)) ++power;
  const value = bytes / 1024 ** power;
  return `${Number.isInteger(value) ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[power]}`;
}

/// About `wanted` round values from 0 to `most`; of bytes, round in their unit.
function ticks(most, wanted, unit = 1) {
  const rough = most / unit / wanted;
  const magnitude = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find(factor => factor * magnitude >= rough) * magnitude * unit;
  return Array.from({length: Math.floor(most / step) + 1}, (_, i) => i * step);
}

function unitOf(bytes) {
  let unit = 1;
  while (unit * 1024 <= bytes) unit *= 1024;
  return unit;
}

// ---------------------------------------------------------------------------------------------------------------- data

async function unpack() {
  const bytes = Uint8Array.from(atob(byId('data').textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).json();
}

/// Ranges of addresses, each in one state after the events [from, to).
class Ranges {
  constructor(columns) {
    this.columns = columns;
    this.address = Float64Array.from(columns.address);
    this.bytes = Float64Array.from(columns.bytes);
    this.from = Uint32Array.from(columns.from);
    this.to = Uint32Array.from(columns.to);
    this.byAddress = Uint32Array.from(this.address.keys()).sort((a, b) => this.address[a] - this.address[b]);
    this.fromByAddress = this.byAddress.map(i => this.from[i]);
    this.toByAddress = this.byAddress.map(i => this.to[i]);
  }

  /// Numbers of the ranges at an event, in address order.
  at(event) {
    const found = [];
    for (let k = 0; k < this.byAddress.length; ++k)
      if (this.fromByAddress[k] <= event && event < this.toByAddress[k]) found.push(this.byAddress[k]);
    return found;
  }

  sum(numbers, values = this.bytes) {
    return numbers.reduce((total, i) => total + values[i], 0);
  }

  /// Of `numbers`, in address order, the place of the last that begins at or below the address; -1: none.
  lastAt(numbers, address) {
    let low = 0;
    let high = numbers.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.address[numbers[middle]] <= address) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /// The number of the range that holds the address, or undefined.
  holding(numbers, address) {
    const i = numbers[this.lastAt(numbers, address)];
    return i !== undefined && address < this.address[i] + this.bytes[i] ? i : undefined;
  }
}

/// The addresses that were ever committed, side by side: what was not is left out.
class PackedAddresses {
  constructor(committed) {
    this.pieces = [];  // {begin, end, place}
    for (const i of committed.byAddress) {
      const begin = committed.address[i];
      const end = begin + committed.bytes[i];
      const last = this.pieces.at(-1);
      if (last && begin <= last.end) last.end = Math.max(last.end, end);
      else this.pieces.push({begin, end, place: 0});
    }
    this.total = 0;
    for (const piece of this.pieces) {
      piece.place = this.total;
      this.total += piece.end - piece.begin;
    }
  }

  find(value, key) {
    let low = 0;
    let high = this.pieces.length;
    while (low + 1 < high) {
      const middle = (low + high) >> 1;
      if (this.pieces[middle][key] <= value) low = middle;
      else high = middle;
    }
    return this.pieces[low];
  }

  place(address) {
    const piece = this.find(address, 'begin');
    return piece.place + address - piece.begin;
  }

  address(place) {
    const piece = this.find(place, 'place');
    return piece.begin + place - piece.place;
  }
}

/// One pool on one trace.
class Pool {
  constructor(history, trace) {
    this.name = history.allocator;
    this.history = history;
    this.trace = trace;
    this.chunk = history.chunk_bytes;
    this.blocks = new Ranges(history.blocks);
    this.cached = new Ranges(history.cached);
    this.committed = new Ranges(history.committed);
    this.packed = new PackedAddresses(this.committed);
    for (const ranges of [this.blocks, this.cached, this.committed])
      ranges.place = ranges.address.map(address => this.packed.place(address));
    this.requested = Float64Array.from(history.blocks.requested_bytes);
  }

  /// The event after which most bytes were requested, the first of several.
  get peak() {
    const changes = new Float64Array(this.trace.events + 1);
    this.requested.forEach((bytes, i) => {
      changes[this.blocks.from[i]] += bytes;
      changes[this.blocks.to[i]] -= bytes;
    });
    let live = 0;
    let most = 0;
    let peak = 0;
    for (let event = 0; event < this.trace.events; ++event) {
      live += changes[event];
      if (live > most) [most, peak] = [live, event];
    }
    return peak;
  }

  at(event) {
    return {event, blocks: this.blocks.at(event), cached: this.cached.at(event), committed: this.committed.at(event)};
  }
}

// ------------------------------------------------------------------------------------------------------------- colours

// Okabe and Ito's, which are told apart without full colour vision, in light and in dark.
const CATEGORIES = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#f0e442'];
// From small to large in even steps of lightness.
const SIZES = ['#fde725', '#b5de2b', '#6ece58', '#35b779', '#1f9e89', '#26828e', '#31688e', '#3e4989', '#482878'];

/// A column of the blocks that has few values, each with a colour.
function byCategory(label, column, describe) {
  return {
    label,
    present: pool => pool.history.blocks[column] !== undefined,
    colourOf: pool => {
      const values = pool.history.blocks[column];
      return i => CATEGORIES[values[i] % CATEGORIES.length];
    },
    legend: pool => {
      const values = [...new Set(pool.history.blocks[column])].sort((a, b) => a - b);
      const shown = values.slice(0, 12).map(value => [CATEGORIES[value % CATEGORIES.length], describe(value, pool)]);
      return values.length > 12 ? [...shown, [null, `and ${values.length - 12} more`]] : shown;
    },
  };
}

const sizeColour = bytes => SIZES[Math.max(0, Math.min(SIZES.length - 1, Math.floor((Math.log2(bytes) - 8) / 2)))];

function laneWord(pool) {
  return pool.name.endsWith('-streams') ? 'stream' : 'lane';
}

function tagName(value, pool) {
  return pool.history.tags?.[value] ?? `tag ${value}`;
}

/// Another way to colour blocks is one more line.
const COLOURINGS = {
  lane: byCategory('lane', 'lane', (value, pool) => `${laneWord(pool)} ${value}`),
  thread: byCategory('thread of the trace', 'thread', value => `thread ${value}`),
  size: {
    label: 'size',
    present: () => true,
    colourOf: pool => i => sizeColour(pool.requested[i]),
    legend: () => SIZES.map((colour, i) => [colour, i === 0 ? 'below 1 KiB' :
        i + 1 === SIZES.length ? `${formatBytes(4 ** (i + 4))} and more` : `from ${formatBytes(4 ** (i + 4))}`]),
  },
  tag: byCategory('tag', 'tag', tagName),
};

// ------------------------------------------------------------------------------------------------------------- drawing

/// A canvas with as many pixels as the screen has there.
function sharp(canvas, height = canvas.clientHeight) {
  const scale = devicePixelRatio;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  return context;
}

/// Stripes, so that cached memory is not told by its colour alone.
function striped(context) {
  const tile = document.createElement('canvas');
  tile.width = tile.height = 6;
  const c = tile.getContext('2d');
  c.fillStyle = css('--free');
  c.fillRect(0, 0, 6, 6);
  c.strokeStyle = css('--cached');
  c.lineWidth = 2.2;
  c.beginPath();
  for (const x of [-6, 0, 6]) {
    c.moveTo(x, 6);
    c.lineTo(x + 6, 0);
  }
  c.stroke();
  return context.createPattern(tile, 'repeat');
}

function legend(list, entries) {
  list.replaceChildren(...entries.map(([paint, text]) => {
    const item = document.createElement('li');
    if (paint) {
      const swatch = document.createElement('canvas');
      item.append(swatch);
      queueMicrotask(() => {
        const c = sharp(swatch, 13);
        if (typeof paint === 'function') return paint(c);
        c.fillStyle = paint;
        c.fillRect(0, 0, 22, 13);
      });
    }
    item.append(text);
    return item;
  }));
}

/// Memory over the events of a trace. Curves are told by colour and by dashes.
class Chart {
  static margin = {left: 78, right: 12, top: 10, bottom: 38};
  static dashes = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 4], [12, 4]];

  constructor(canvas) {
    this.canvas = canvas;
  }

  show(trace) {
    this.trace = trace;
    this.key = null;
    const curves = trace.allocators.map(each => each.committed_bytes);
    const highest = [trace.live_bytes, ...curves].map(values => values.reduce((a, b) => Math.max(a, b), 0));
    this.most = 1.06 * Math.max(1, ...highest);
    // A limit far above all that happened would flatten it.
    this.limit = trace.limit_bytes !== null && trace.limit_bytes < 2 * this.most ? trace.limit_bytes : null;
    if (this.limit !== null) this.most = Math.max(this.most, 1.04 * this.limit);
  }

  static style(context, i) {
    context.strokeStyle = css(`--curve-${i % 6}`);
    context.lineWidth = i === 0 ? 2.4 : 1.6;
    context.setLineDash(Chart.dashes[i % Chart.dashes.length]);
  }

  /// Asked for once before a use: the browser may have to lay out the page to answer.
  measure() {
    const {left, right, top, bottom} = Chart.margin;
    const {clientWidth, clientHeight} = this.canvas;
    this.area = {left, top, width: clientWidth - left - right, height: clientHeight - top - bottom};
  }

  x(event) {
    return this.area.left + this.area.width * event / Math.max(1, this.trace.events);
  }

  y(bytes) {
    return this.area.top + this.area.height * (1 - bytes / this.most);
  }

  eventAt(x) {
    const event = Math.floor((x - this.area.left) / this.area.width * this.trace.events);
    return Math.max(0, Math.min(this.trace.events - 1, event));
  }

  series(c, values) {
    values.forEach((bytes, i) => {
      c.lineTo(this.x(i * this.trace.interval), this.y(bytes));
      c.lineTo(this.x(Math.min(this.trace.events, (i + 1) * this.trace.interval)), this.y(bytes));
    });
  }

  axes(c) {
    const {left, top, width, height} = this.area;
    const unit = unitOf(this.most);
    c.font = '12px system-ui, sans-serif';
    c.strokeStyle = css('--line');
    c.fillStyle = css('--muted');
    c.lineWidth = 1;
    c.textAlign = 'right';
    c.textBaseline = 'middle';
    for (const bytes of ticks(this.most, 5, unit)) {
      c.strokeRect(left, this.y(bytes), width, 0);
      c.fillText(formatBytes(bytes), left - 8, this.y(bytes));
    }
    c.textAlign = 'center';
    c.textBaseline = 'top';
    for (const event of ticks(this.trace.events, 8).filter(Number.isInteger)) {
      c.strokeRect(this.x(event), top, 0, height);
      c.fillText(count(event), this.x(event), top + height + 5);
    }
    c.fillText('events of the trace', left + width / 2, top + height + 21);
  }

  /// All but the mark of the event is the same until the trace, the size or the colours change.
  draw(event) {
    this.measure();
    const c = sharp(this.canvas);
    const key = [this.canvas.width, this.canvas.height, css('--page')].join();
    if (this.key !== key) {
      this.key = key;
      this.drawCurves(c);
      this.curves = new OffscreenCanvas(this.canvas.width, this.canvas.height);
      this.curves.getContext('2d').drawImage(this.canvas, 0, 0);
    } else {
      c.drawImage(this.curves, 0, 0, this.curves.width / devicePixelRatio, this.curves.height / devicePixelRatio);
    }
    c.strokeStyle = css('--mark');
    c.lineWidth = 2;
    c.strokeRect(this.x(event + 0.5), this.area.top, 0, this.area.height);
  }

  drawCurves(c) {
    const {left, width} = this.area;
    c.fillStyle = css('--live');
    c.beginPath();
    c.moveTo(left, this.y(0));
    this.series(c, this.trace.live_bytes);
    c.lineTo(left + width, this.y(0));
    c.fill();
    this.axes(c);
    for (let i = this.trace.allocators.length; i-- > 0;) {  // the first lies on top
      Chart.style(c, i);
      c.beginPath();
      this.series(c, this.trace.allocators[i].committed_bytes);
      c.stroke();
    }
    c.setLineDash([10, 5]);
    c.strokeStyle = css('--ink');
    c.lineWidth = 1.2;
    if (this.limit !== null) c.strokeRect(left, this.y(this.limit), width, 0);
    c.setLineDash([]);
  }

  /// What the curves say around an event.
  legend(list, event) {
    const sample = Math.floor(event / this.trace.interval);
    const line = i => c => {
      Chart.style(c, i);
      c.strokeRect(0, 6.5, 22, 0);
    };
    const entries = [[css('--live'), `live (requested) ${formatBytes(this.trace.live_bytes[sample] ?? 0)}`]];
    this.trace.allocators.forEach((each, i) =>
      entries.push([line(i), `committed by ${each.allocator} ${formatBytes(each.committed_bytes[sample])}`]));
    if (this.trace.limit_bytes !== null) {
      const where = this.limit === null ? ', above the chart' : ' (dashes)';
      entries.push([null, `limit ${formatBytes(this.trace.limit_bytes)}${where}`]);
    }
    if (this.trace.interval > 1) entries.push([null, `(the highest of ${this.trace.interval} events around)`]);
    legend(list, entries);
  }
}

/// Addresses in rows, from left to right and from top to bottom like text.
class AddressMap {
  constructor(canvas, lens) {
    this.canvas = canvas;
    this.lens = lens;
  }

  show(pool) {
    this.pool = pool;
    const least = LENS_CHUNKS * pool.chunk;
    const chunks = Math.ceil(Math.max(1, pool.packed.total) / pool.chunk);
    this.rowBytes = Math.max(least, Math.ceil(chunks / MOST_ROWS) * pool.chunk);
    this.rows = Math.max(1, Math.ceil(pool.packed.total / this.rowBytes));
    this.focus = null;  // the place that the lens shows
  }

  draw(state, colouring) {
    this.state = state;
    this.colourOf = colouring.colourOf(this.pool);
    const height = this.rows * ROW_HEIGHT;
    this.canvas.style.height = `${height}px`;
    this.paint(sharp(this.canvas, height), {
      begin: 0, end: this.pool.packed.total, rowBytes: this.rowBytes, rowHeight: ROW_HEIGHT, gap: 3,
      width: this.canvas.clientWidth,
    });
    this.drawLens();
  }

  get lensView() {
    const bytes = LENS_CHUNKS * this.pool.chunk;
    const last = Math.max(0, this.pool.packed.total - bytes);
    const chunk = Math.floor((this.focus ?? 0) / this.pool.chunk) - LENS_CHUNKS / 2;
    const begin = Math.max(0, Math.min(last, chunk * this.pool.chunk));
    return {begin, end: Math.min(begin + bytes, this.pool.packed.total), rowBytes: bytes, rowHeight: 44, gap: 0,
            width: this.lens.clientWidth};
  }

  drawLens() {
    const view = this.lensView;
    const c = sharp(this.lens);
    this.paint(c, view);
    if (this.focus === null) return;
    c.strokeStyle = css('--mark');
    c.lineWidth = 2;
    c.strokeRect((this.focus - view.begin) / view.rowBytes * view.width, 0, 0, view.rowHeight);
  }

  paint(c, view) {
    const {pool, state} = this;
    const scale = view.width / view.rowBytes;
    const height = view.rowHeight - view.gap;
    /// Fills what lies in the view of [place, place + bytes).
    const fill = (place, bytes, edge = 0) => {
      let at = Math.max(place, view.begin) - view.begin;
      const end = Math.min(place + bytes, view.end) - view.begin;
      while (at < end) {
        const row = Math.floor(at / view.rowBytes);
        const stop = Math.min(end, (row + 1) * view.rowBytes);
        const width = (stop - at) * scale;
        c.fillRect((at - row * view.rowBytes) * scale, row * view.rowHeight, width > 4 ? width - edge : width, height);
        at = stop;
      }
    };
    c.fillStyle = css('--uncommitted');
    fill(0, pool.packed.total);
    c.fillStyle = css('--free');
    for (const i of state.committed) fill(pool.committed.place[i], pool.committed.bytes[i]);
    c.fillStyle = striped(c);
    for (const i of state.cached) fill(pool.cached.place[i], pool.cached.bytes[i]);
    let colour = null;
    for (const i of state.blocks) {
      const next = this.colourOf(i);
      if (next !== colour) c.fillStyle = colour = next;
      fill(pool.blocks.place[i], pool.blocks.bytes[i], 1);
    }
    // What rounding added to a block.
    c.fillStyle = css('--edge');
    c.globalAlpha = ROUNDING_ALPHA;
    for (const i of state.blocks) {
      const lost = pool.blocks.bytes[i] - pool.requested[i];
      if (lost * scale > 0.5) fill(pool.blocks.place[i] + pool.requested[i], lost, 1);
    }
    c.globalAlpha = 1;
    this.paintChunks(c, view, scale, height);
  }

  /// Lines between chunks, where there is room, and where addresses are left out.
  paintChunks(c, view, scale, height) {
    const {pool} = this;
    const line = (place, width) => {
      if (place <= view.begin || place >= view.end) return;
      const row = Math.floor((place - view.begin) / view.rowBytes);
      const x = (place - view.begin - row * view.rowBytes) * scale;
      c.fillRect(x - width / 2, row * view.rowHeight, width, height);
    };
    c.fillStyle = css('--muted');
    if (pool.chunk * scale >= 6) {
      const first = Math.ceil(view.begin / pool.chunk) * pool.chunk;
      for (let place = first; place < view.end; place += pool.chunk) line(place, 0.5);
    }
    c.fillStyle = css('--ink');
    if (pool.packed.pieces.length < 2000) for (const piece of pool.packed.pieces) line(piece.place, 1.5);
  }

  placeAt(x, y) {
    const place = Math.floor(y / ROW_HEIGHT) * this.rowBytes + x / this.canvas.clientWidth * this.rowBytes;
    return place >= 0 && place < this.pool.packed.total ? place : null;
  }

  lensPlaceAt(x) {
    const {begin, end, rowBytes, width} = this.lensView;
    const place = begin + x / width * rowBytes;
    return place < end ? place : null;
  }

  /// Where the live block before or after the focus begins; backwards: direction -1.
  neighbour(direction) {
    const {blocks} = this.pool;
    const numbers = this.state.blocks;
    if (numbers.length === 0) return null;
    const here = this.focus === null ? -1 : blocks.lastAt(numbers, this.pool.packed.address(this.focus));
    const next = Math.max(0, Math.min(numbers.length - 1, here + direction));
    return blocks.place[numbers[next]];
  }

  /// What the legend says of the states.
  entries() {
    const uncommitted = c => {
      c.fillStyle = css('--uncommitted');
      c.strokeStyle = css('--muted');
      c.fillRect(0, 0, 22, 13);
      c.strokeRect(0.5, 0.5, 21, 12);
    };
    const cached = c => {
      c.fillStyle = striped(c);
      c.fillRect(0, 0, 22, 13);
    };
    const rounded = c => {
      c.fillStyle = CATEGORIES[0];
      c.fillRect(0, 0, 22, 13);
      c.fillStyle = css('--edge');
      c.globalAlpha = ROUNDING_ALPHA;
      c.fillRect(14, 0, 8, 13);
    };
    return [[uncommitted, 'not committed'], [css('--free'), 'committed, free'], [cached, 'cached'],
            [rounded, 'live; paler: added by rounding']];
  }

  /// In words, what is at a place.
  describe(place) {
    const {pool, state} = this;
    const {blocks, cached, committed, history, trace} = pool;
    const address = pool.packed.address(place);
    const at = offset => `0x${(history.origin + offset).toString(16)}`;
    const chunk = `chunk at ${at(Math.floor(address / pool.chunk) * pool.chunk)}`;
    const ends = (ranges, i) =>
      ranges.to[i] < trace.events ? `until event ${count(ranges.to[i])}` : 'to the end of the trace';
    const block = blocks.holding(state.blocks, address);
    if (block !== undefined) {
      const columns = history.blocks;
      const freed = blocks.to[block] < trace.events ?
        `freed at event ${count(blocks.to[block])} by thread ${columns.freed_by[block]}` : 'not freed within the trace';
      const tag = columns.tag ? `, ${tagName(columns.tag[block], pool)}` : '';
      return `live block at ${at(blocks.address[block])}, ${chunk}\n` +
        `size ${formatBytes(blocks.bytes[block])}, requested ${formatBytes(pool.requested[block])} ` +
        `(${count(pool.requested[block])} B)\n` +
        `thread ${columns.thread[block]}, ${laneWord(pool)} ${columns.lane[block]}${tag}\n` +
        `allocated at event ${count(blocks.from[block])}, ${freed}`;
    }
    const kept = cached.holding(state.cached, address);
    if (kept !== undefined) {
      return `cached block at ${at(cached.address[kept])}, ${chunk}\nsize ${formatBytes(cached.bytes[kept])}\n` +
        `kept since event ${count(cached.from[kept])}, ${ends(cached, kept)}`;
    }
    const held = committed.holding(state.committed, address);
    if (held !== undefined) {
      return `free, ${chunk}\ncommitted at event ${count(committed.from[held])}, ${ends(committed, held)}`;
    }
    return `not committed, ${chunk}`;
  }
}

// ---------------------------------------------------------------------------------------------------------------- page

class Page {
  constructor(data) {
    this.data = data;
    this.chart = new Chart(byId('chart'));
    this.map = new AddressMap(byId('map'), byId('lens'));
    this.pools = new Map();  // made when first shown
    this.slider = byId('event');
    this.fill(byId('trace'), data.traces.map(trace => trace.trace));
    byId('trace').onchange = () => this.showTrace();
    byId('pool').onchange = () => this.showPool();
    byId('colour').onchange = () => this.redraw();
    this.slider.oninput = () => this.redraw();
    this.listenToKeys();
    this.listenToChart();
    this.listenToMap();
    new ResizeObserver(() => this.redraw()).observe(document.body);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.redraw());
    this.showTrace();
  }

  fill(select, names, values = names.keys()) {
    select.replaceChildren(...[...values].map((value, i) => new Option(names[i], value)));
  }

  get event() {
    return Number(this.slider.value);
  }

  set event(value) {
    this.slider.value = value;
    this.redraw();
  }

  showTrace() {
    this.trace = this.data.traces[byId('trace').value];
    this.chart.show(this.trace);
    this.slider.max = Math.max(0, this.trace.events - 1);
    this.fill(byId('pool'), this.trace.histories.map(history => history.allocator));
    this.showPool();
    this.event = this.pool?.peak ?? 0;
  }

  showPool() {
    const history = this.trace.histories[byId('pool').value];
    byId('inside').hidden = !history;
    byId('no-inside').hidden = Boolean(history);
    this.pool = null;
    if (history) {
      if (!this.pools.has(history)) this.pools.set(history, new Pool(history, this.trace));
      this.pool = this.pools.get(history);
      this.map.show(this.pool);
      const before = byId('colour').value;
      const present = Object.keys(COLOURINGS).filter(key => COLOURINGS[key].present(this.pool));
      this.fill(byId('colour'), present.map(key => COLOURINGS[key].label), present);
      if (present.includes(before)) byId('colour').value = before;
      byId('map-scale').textContent =
        `Addresses from left to right in rows of ${formatBytes(this.map.rowBytes)}; what was never committed is left ` +
        `out, at the strong lines. A chunk is ${formatBytes(this.pool.chunk)}.`;
    }
    this.redraw();
  }

  /// Draws in the next frame, once.
  redraw() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.draw();
    });
  }

  draw() {
    const {trace, event} = this;
    const number = `${count(event)} of ${count(Math.max(0, trace.events - 1))}`;
    byId('event-number').textContent = number;
    this.slider.setAttribute('aria-valuetext', `event ${number}`);
    this.chart.draw(event);
    this.chart.legend(byId('chart-legend'), event);
    if (this.pool) this.drawInside(event);
    document.body.dataset.event = event;  // what is on the screen now
  }

  drawInside(event) {
    const {pool} = this;
    const colouring = COLOURINGS[byId('colour').value];
    const state = pool.at(event);
    this.map.draw(state, colouring);
    byId('details').textContent = this.map.focus === null ?
      'Point at the map, or focus it and use the arrow keys.' : this.map.describe(this.map.focus);
    legend(byId('map-legend'), [...this.map.entries(), ...colouring.legend(pool)]);
    const committed = pool.committed.sum(state.committed);
    const allocated = pool.blocks.sum(state.blocks);
    const cached = pool.cached.sum(state.cached);
    this.figures({
      requested: ['requested', pool.blocks.sum(state.blocks, pool.requested)],
      allocated: ['rounded', allocated],
      cached: ['cached', cached],
      free: ['free', committed - allocated - cached],
      committed: ['committed', committed],
    }, {blocks: state.blocks.length, chunks: committed / pool.chunk});
  }

  figures(bytes, counts) {
    const row = (key, label, text, value) => {
      const group = document.createElement('div');
      const name = document.createElement('dt');
      const figure = document.createElement('dd');
      name.textContent = label;
      figure.textContent = text;
      figure.dataset[key] = value;
      group.append(name, figure);
      return group;
    };
    byId('figures').replaceChildren(
      ...Object.entries(bytes).map(([key, [label, value]]) => row(key, label, formatBytes(value), value)),
      ...Object.entries(counts).map(([key, value]) => row(key, key, count(value), value)));
  }

  listenToKeys() {
    document.addEventListener('keydown', pressed => {
      const onMap = document.activeElement === byId('map');
      const direction = {ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1}[pressed.key];
      if (direction === undefined || document.activeElement.tagName === 'SELECT') return;
      if (onMap) {
        const backwards = pressed.key === 'ArrowLeft' || pressed.key === 'ArrowUp';
        this.pointAt(this.map.neighbour(backwards ? -1 : 1));
      } else {
        const step = pressed.shiftKey ? Math.max(1, Math.round(this.trace.events / 100)) : 1;
        this.event = this.event + direction * step;
      }
      pressed.preventDefault();
    });
  }

  listenToChart() {
    const {canvas} = this.chart;
    const follow = pointer => {
      if (pointer.buttons & 1) this.event = this.chart.eventAt(pointer.offsetX);
    };
    canvas.addEventListener('pointerdown', pointer => {
      canvas.setPointerCapture(pointer.pointerId);
      follow(pointer);
    });
    canvas.addEventListener('pointermove', follow);
  }

  listenToMap() {
    const follow = (canvas, placeAt) => {
      canvas.addEventListener('pointermove', pointer => {
        const place = placeAt(pointer);
        if (canvas !== this.map.lens) this.pointAt(place, pointer);
        else this.tell(place, pointer);
      });
      canvas.addEventListener('pointerleave', () => { byId('tip').hidden = true; });
    };
    follow(this.map.canvas, pointer => this.map.placeAt(pointer.offsetX, pointer.offsetY));
    follow(this.map.lens, pointer => this.map.lensPlaceAt(pointer.offsetX));
  }

  pointAt(place, pointer = null) {
    if (place !== null) {
      this.map.focus = place;
      this.map.drawLens();
    }
    this.tell(place, pointer);
  }

  tell(place, pointer) {
    const tip = byId('tip');
    tip.hidden = place === null || pointer === null;
    if (place === null) return;
    const text = this.map.describe(place);
    byId('details').textContent = text;
    if (pointer === null) return;
    tip.textContent = text;
    const {width, height} = tip.getBoundingClientRect();
    tip.style.left = `${Math.min(pointer.clientX + 14, innerWidth - width - 8)}px`;
    const below = pointer.clientY + 18;
    tip.style.top = `${below + height > innerHeight ? pointer.clientY - height - 10 : below}px`;
  }
}

try {
  const data = await unpack();
  byId('status').hidden = true;
  document.querySelector('main').hidden = false;
  window.page = new Page(data);
} catch (error) {
  byId('status').textContent = `This page could not be shown: ${error.message}`;
  throw error;
}
