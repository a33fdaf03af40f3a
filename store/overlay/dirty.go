package overlay

import ()

// Change is one record to write, or to delete.
type Change struct {
	Key  []byte
	Rec  Record
	Gone bool
}

// Changes are what a flush has to write.
type Changes struct {
	engine *Engine
	refs   []ref
}

// Len returns how many there are.
func (c Changes) Len() int { return len(c.refs) }

// At returns change i; they are in the order of their keys, which are not to
// be changed.
func (c Changes) At(i int) Change {
	b, ch := c.engine.change(&c.refs[i])
	return Change{b.key(ch), ch.rec, ch.gone}
}

// TakeDirty returns all changes that wait to be written. One of Written or
// Failed must follow before the next TakeDirty; they are valid until then.
func (e *Engine) TakeDirty() Changes {
	refs := e.refs[:0]
	for i := range e.shards {
		sh := &e.shards[i]
		sh.mu.Lock()
		b := sh.take()
		sh.mu.Unlock()
		for j := range b.changes {
			refs = append(refs, ref{shard: uint32(i), at: uint32(j)})
		}
	}
	e.refs = refs
	if cap(refs) > 1<<20 && cap(refs) > 8*len(refs) {
		e.refs = nil // 16 MB left by a burst
	}
	e.sort(refs, 0)
	return Changes{e, refs}
}

// Written tells that what TakeDirty returned is in the backing.
func (e *Engine) Written() {
	// First the filters: what is clean below may be dropped from memory.
	for _, f := range []*filter{e.stored.Load(), e.next.Load()} {
		if f == nil {
			continue
		}
		for i := range e.shards {
			changes := e.shards[i].before.changes
			for j := range changes {
				if !changes[j].gone {
					f.add(changes[j].sum)
				}
			}
		}
	}
	for i := range e.shards {
		sh := &e.shards[i]
		sh.mu.Lock()
		e.pending.Add(-int64(sh.written()))
		sh.mu.Unlock()
	}
}

// Failed puts what TakeDirty returned back, but for what a newer change has
// overtaken.
func (e *Engine) Failed() {
	for i := range e.shards {
		sh := &e.shards[i]
		sh.mu.Lock()
		sh.failed()
		sh.mu.Unlock()
	}
}

// FillFilter begins to tell the engine what is in the backing, so that it need
// not look there for what is not: each calls add for every key, which it need
// not keep. Until each has come to its end without an error the engine looks.
// Keys written meanwhile need not be told. One such call is made at a time.
func (e *Engine) FillFilter(each func(add func(key []byte)) error) error {
	f := newFilter(2 * e.Entries())
	e.next.Store(f)
	defer e.next.Store(nil)
	if err := each(func(key []byte) { f.add(e.digest(key)) }); err != nil {
		return err
	}
	e.stored.Store(f)
	return nil
}
