package overlay

import "sync/atomic"

// filter is a Bloom filter: it tells of most keys that are not in the backing
// that they are not. A key's bits are all in one word, so that a question
// costs one look into memory. It is safe for concurrent use.
type filter struct {
	words []atomic.Uint64
	added atomic.Int64
}

const (
	// filterWord is how many keys share a word of 64 bits: with 16 bits a key
	// and 4 of them set, one in 200 questions is answered wrongly.
	filterWord = 4
	filterMin  = 64 << 10 // words, 512 KB
)

// newFilter returns a filter for n keys, or some more.
func newFilter(n int) *filter {
	size := filterMin
	for size*filterWord < n {
		size *= 2
	}
	return &filter{words: make([]atomic.Uint64, size)}
}

// bits returns the word of a key, and the bits in it. The low bits of a have
// picked the shard, and its high bits the place in it.
func (f *filter) bits(d digest) (*atomic.Uint64, uint64) {
	b := d.b
	m := uint64(1)<<(b&63) | 1<<(b>>6&63) | 1<<(b>>12&63) | 1<<(b>>18&63)
	return &f.words[b>>24&uint64(len(f.words)-1)], m
}

func (f *filter) add(d digest) {
	w, m := f.bits(d)
	if w.Load()&m != m {
		w.Or(m)
		f.added.Add(1)
	}
}

// holds reports whether the key may be among those added.
func (f *filter) holds(d digest) bool {
	w, m := f.bits(d)
	return w.Load()&m == m
}

// full reports whether more keys were added than the filter was made for.
func (f *filter) full() bool { return f.added.Load() > int64(len(f.words)*filterWord) }
