package overlay

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// ref is a place among the changes of all shards, with eight bytes of its key:
// most keys of a moment begin alike, and comparing them whole would be half of
// what a flush costs.
type ref struct {
	part      uint64
	shard, at uint32
}

func (e *Engine) change(r *ref) (*batch, *change) {
	b := &e.shards[r.shard].before
	return b, &b.changes[r.at]
}

// sort puts refs whose keys agree in the first depth bytes into the order of
// their keys.
func (e *Engine) sort(refs []ref, depth int) {
	if len(refs) < 2 {
		return
	}
	ended := false
	for i := range refs {
		b, c := e.change(&refs[i])
		rest := b.key(c)[depth:]
		if len(rest) >= 8 {
			refs[i].part = binary.BigEndian.Uint64(rest)
			continue
		}
		ended = true
		break
	}
	if ended {
		// The rest of a key is shorter than a part: not many are left here.
		slices.SortFunc(refs, func(x, y ref) int {
			xb, xc := e.change(&x)
			yb, yc := e.change(&y)
			return bytes.Compare(xb.key(xc)[depth:], yb.key(yc)[depth:])
		})
		return
	}
	slices.SortFunc(refs, func(x, y ref) int { return cmp.Compare(x.part, y.part) })
	for from := 0; from < len(refs); {
		to := from + 1
		for to < len(refs) && refs[to].part == refs[from].part {
			to++
		}
		e.sort(refs[from:to], depth+8)
		from = to
	}
}
