package bolt

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/store"
	"postern/store/overlay"
)

// Those who wait stand under growing numbers, so that a flood is written as a
// log is, side by side, and removed likewise.

// openWaiting brings back those who waited when the file was last written.
func (s *Store) openWaiting() (err error) {
	defer guard(&err)
	now, odd := time.Now(), 0
	err = s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketWait).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if len(k) != 8 || !s.engine.RestoreWaiting(binary.BigEndian.Uint64(k), v, now) {
				odd++
			}
		}
		return nil
	})
	if odd > 0 {
		s.log.Warn("some first contacts in the state file cannot be read, and are forgotten", zap.String("path", s.path), zap.Int("contacts", odd))
	}
	if err != nil {
		return fmt.Errorf("store: %s: %w", s.path, err)
	}
	return nil
}

// writeWaiting writes what has changed among those who wait, in the order of
// the numbers, into which it brings changes.
func writeWaiting(tx *bbolt.Tx, changes []overlay.WaitingChange) error {
	slices.SortFunc(changes, func(a, b overlay.WaitingChange) int { return cmp.Compare(a.Seq, b.Seq) })
	b := tx.Bucket(bucketWait)
	b.FillPercent = 0.95                    // nothing comes in between
	keys := make([]byte, 0, 8*len(changes)) // bbolt keeps them until the end
	for i := range changes {
		at := len(keys)
		keys = binary.BigEndian.AppendUint64(keys, changes[i].Seq)
		key := keys[at:len(keys):len(keys)]
		var err error
		if changes[i].Value == nil {
			err = b.Delete(key)
		} else {
			err = b.Put(key, changes[i].Value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eachWaiting calls yield for each side that waits, until it returns false.
// The file has just been written, and no transaction is held while it yields.
func (s *Store) eachWaiting(ctx context.Context, now time.Time, yield func(greylist.Entry) bool) error {
	if err := s.flush(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	var from []byte
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var batch []greylist.Entry
		next, err := s.scanWaiting(from, listBatch, func(v []byte) { batch = append(batch, overlay.WaitingEntries(v, now)...) })
		if err != nil {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		for _, e := range batch {
			if !yield(e) {
				return nil
			}
		}
		from, more = next, next != nil
	}
	return nil
}

func (s *Store) scanWaiting(from []byte, n int, yield func(v []byte)) (next []byte, err error) {
	defer guard(&err)
	err = s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketWait).Cursor()
		k, v := c.First()
		if from != nil {
			k, v = c.Seek(from)
		}
		for ; k != nil; k, v = c.Next() {
			if n == 0 {
				next = slices.Clone(k)
				return nil
			}
			n--
			yield(v)
		}
		return nil
	})
	return next, err
}
