package overlay

import (
	"math/bits"
	"sync"
)

// cell is a record in a shard. It holds no pointer: however many there are,
// the garbage collector has nothing to look at.
type cell struct {
	key  digest
	rec  Record
	born uint32 // batch in which it last changed; 0: as in the backing
	at   uint32 // its place among the changes of that batch
	used bool
	gone bool // deleted, or known not to be in the backing
}

// shard is a hash table with open addressing and linear probing. Its lock
// guards all of it.
type shard struct {
	mu    sync.Mutex
	cells []cell   // a power of two
	names []string // keys by cell; nil when there is a backing, which knows them
	shift uint8    // 64 less the binary logarithm of len(cells)
	n     int
	max   int // cells to keep when there is a backing, dirty ones apart
	hand  int // where dropping goes on

	// Changed cells are gathered in a batch until it is flushed; the one
	// before stays here until it is written.
	number  uint32 // of the present batch
	batch   batch
	flushed uint32 // number of the batch being flushed, 0 for none
	before  batch
	changed int // cells of before that have changed again
	quiet   int // batches in a row that were much smaller than the memory kept for them

	_ [32]byte // shards are locked by different cores
}

// batch is a list of changes with the keys that they are for.
type batch struct {
	changes []change
	keys    []byte
}

type change struct {
	sum  digest
	rec  Record
	at   uint32 // where the key begins in keys
	size uint16
	gone bool
}

func (b *batch) key(c *change) []byte { return b.keys[c.at : c.at+uint32(c.size)] }

const minCells = 16

func (sh *shard) init(most int, named bool) {
	sh.max, sh.number = most, 1
	sh.allocate(minCells, named)
}

func (sh *shard) allocate(n int, named bool) {
	sh.cells, sh.shift = make([]cell, n), uint8(64-bits.TrailingZeros(uint(n)))
	if named {
		sh.names = make([]string, n)
	}
}

// home is where a key belongs. The low bits have picked the shard.
func (sh *shard) home(d digest) int { return int(d.a >> sh.shift) }

func (sh *shard) mask() int { return len(sh.cells) - 1 }

// find returns the cell of a key, nil when there is none.
func (sh *shard) find(d digest) *cell {
	mask := len(sh.cells) - 1
	for i := sh.home(d); ; i++ {
		c := &sh.cells[i&mask]
		if c.key == d && c.used {
			return c
		}
		if !c.used {
			return nil
		}
	}
}

// insert makes a cell for a key that has none, clean and with a zero record.
// It moves other cells. key is needed when there is no backing.
func (sh *shard) insert(d digest, key []byte) *cell {
	if sh.names == nil && sh.n >= sh.max {
		sh.drop()
	}
	if 4*(sh.n+1) > 3*len(sh.cells) {
		sh.resize(2 * len(sh.cells))
	}
	sh.n++
	i := sh.free(d)
	sh.cells[i] = cell{key: d, used: true}
	if sh.names != nil {
		sh.names[i] = string(key)
	}
	return &sh.cells[i]
}

// free returns the first free place for a key.
func (sh *shard) free(d digest) int {
	i := sh.home(d)
	for sh.cells[i].used {
		i = (i + 1) & sh.mask()
	}
	return i
}

func (sh *shard) resize(n int) {
	cells, names := sh.cells, sh.names
	sh.allocate(n, names != nil)
	for i := range cells {
		if cells[i].used {
			at := sh.free(cells[i].key)
			sh.cells[at] = cells[i]
			if names != nil {
				sh.names[at] = names[i]
			}
		}
	}
}

// remove empties a cell and moves those behind it that could not be found any
// more.
func (sh *shard) remove(c *cell) {
	i := sh.home(c.key)
	for &sh.cells[i] != c {
		i = (i + 1) & sh.mask()
	}
	for j := i; ; {
		j = (j + 1) & sh.mask()
		if !sh.cells[j].used {
			break
		}
		// What is in j may stand in i unless its home is between the two.
		if h := sh.home(sh.cells[j].key); (j-h)&sh.mask() >= (j-i)&sh.mask() {
			sh.cells[i] = sh.cells[j]
			if sh.names != nil {
				sh.names[i] = sh.names[j]
			}
			i = j
		}
	}
	sh.cells[i] = cell{}
	if sh.names != nil {
		sh.names[i] = ""
	}
	sh.n--
}

// drop drops a clean cell or two, if some are near.
func (sh *shard) drop() {
	const look = 8
	for dropped, tries := 0, 0; tries < look && dropped < 2; tries++ {
		sh.hand = (sh.hand + 1) & sh.mask()
		if c := &sh.cells[sh.hand]; c.used && sh.clean(c) {
			sh.remove(c)
			dropped++
		}
	}
}

func (sh *shard) clean(c *cell) bool {
	return c.born != sh.number && (c.born != sh.flushed || sh.flushed == 0)
}

// change notes that c, whose key is given, is to be written as it is now. It
// reports whether that is one more cell to write.
func (sh *shard) change(c *cell, key []byte) bool {
	b := &sh.batch
	if c.born == sh.number {
		b.changes[c.at].rec, b.changes[c.at].gone = c.rec, c.gone
		return false
	}
	again := sh.flushed != 0 && c.born == sh.flushed
	if again {
		sh.changed++
	}
	c.born, c.at = sh.number, uint32(len(b.changes))
	b.changes = append(b.changes, change{sum: c.key, rec: c.rec, gone: c.gone, at: uint32(len(b.keys)), size: uint16(len(key))})
	b.keys = append(b.keys, key...)
	return !again
}

// take ends the present batch, begins another and returns the first, which
// stays as it is until written or failed.
func (sh *shard) take() *batch {
	sh.flushed, sh.changed = sh.number, 0
	sh.number++
	sh.batch, sh.before = sh.before, sh.batch
	sh.batch.changes, sh.batch.keys = sh.batch.changes[:0], sh.batch.keys[:0]
	return &sh.before
}

// written makes the cells of the batch that was taken clean, but for those
// that have changed since, and returns how many.
func (sh *shard) written() int {
	n := len(sh.before.changes) - sh.changed
	sh.flushed = 0
	sh.shrink()
	return n
}

// shrink gives memory back when a burst is long over.
func (sh *shard) shrink() {
	const keep, patience = 256, 100
	if c := max(cap(sh.before.changes), cap(sh.batch.changes)); c <= keep || len(sh.before.changes) >= c/8 {
		sh.quiet = 0
	} else if sh.quiet++; sh.quiet > patience {
		sh.before = batch{}
		if len(sh.batch.changes) == 0 {
			sh.batch = batch{}
		}
	}
	if len(sh.cells) > minCells && sh.n < len(sh.cells)/8 {
		sh.resize(len(sh.cells) / 2)
	}
}

// failed puts the batch that was taken back, but for what has changed since.
func (sh *shard) failed() {
	for i := range sh.before.changes {
		old := &sh.before.changes[i]
		if c := sh.find(old.sum); c != nil && c.born == sh.flushed {
			sh.change(c, sh.before.key(old))
		}
	}
	sh.flushed = 0
}
