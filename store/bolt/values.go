package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/zap"

	"postern/internal/meter"
	"postern/store"
	"postern/store/overlay"
)

// Each space of values is a bucket of its own; a value stands behind eight
// bytes of expiry. How many there are is kept in the bucket of the meta data.
const valuesPrefix = "values:"

// openValues reads how many values there are.
func (s *Store) openValues(most int) error {
	counts := make(map[string]int)
	err := s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketMeta).Cursor()
		prefix := []byte(valuesPrefix)
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if len(v) == 8 {
				counts[string(k[len(prefix):])] = int(binary.BigEndian.Uint64(v))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store: %s: %w", s.path, err)
	}
	s.values = overlay.NewValues(most, valueFile{s}, counts)
	return nil
}

// valueFile is the file as the values' engine sees it.
type valueFile struct{ s *Store }

// LoadValue implements overlay.ValueBacking.
func (f valueFile) LoadValue(space, key string) (value string, expires int64, err error) {
	defer guard(&err)
	err = f.s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(valuesPrefix + space))
		if b == nil {
			return nil
		}
		if v := b.Get([]byte(key)); len(v) > 8 {
			expires, value = int64(binary.BigEndian.Uint64(v)), string(v[8:])
		}
		return nil
	})
	return value, expires, err
}

// flushValues writes the values that have changed.
func (s *Store) flushValues() error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	changes := s.values.TakeDirty()
	if len(changes) == 0 {
		return nil
	}
	start := time.Now()
	err := s.writeValues(changes)
	if err != nil {
		s.values.Failed(changes)
	} else {
		s.values.Written(changes)
	}
	s.note(err, time.Since(start))
	return err
}

func (s *Store) writeValues(changes []overlay.ValueChange) (err error) {
	defer guard(&err)
	return s.db.Update(func(tx *bbolt.Tx) error {
		var b *bbolt.Bucket
		space := ""
		for i := range changes {
			c := &changes[i]
			if b == nil || c.Space != space {
				space = c.Space
				var err error
				if b, err = tx.CreateBucketIfNotExists([]byte(valuesPrefix + space)); err != nil {
					return err
				}
			}
			var err error
			if c.Value == "" {
				err = b.Delete([]byte(c.Key))
			} else {
				err = b.Put([]byte(c.Key), append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(c.Value)), uint64(c.Expires)), c.Value...))
			}
			if err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		for space, n := range s.values.Counts() {
			if err := meta.Put([]byte(valuesPrefix+space), binary.BigEndian.AppendUint64(nil, uint64(max(0, n)))); err != nil {
				return err
			}
		}
		return nil
	})
}

// scanValues calls yield for at most n values of a space from a key on and
// returns the key at which to go on, "" at the end. What it gives is copied.
func (s *Store) scanValues(space, from string, n int, yield func(key, value string, expires int64)) (next string, err error) {
	defer guard(&err)
	err = s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(valuesPrefix + space))
		if b == nil {
			return nil
		}
		c := b.Cursor()
		for k, v := c.Seek([]byte(from)); k != nil; k, v = c.Next() {
			if n == 0 {
				next = string(k)
				return nil
			}
			n--
			if len(v) > 8 {
				yield(string(k), string(v[8:]), int64(binary.BigEndian.Uint64(v)))
			}
		}
		return nil
	})
	return next, err
}

// sweepValues drops values that have expired. A space is small enough to be
// looked through in a few steps, each a read transaction of its own.
func (s *Store) sweepValues(now time.Time) {
	for space := range s.values.Counts() {
		type old struct {
			key     string
			expires int64
		}
		var gone []old
		s.mu.Lock()
		from := s.valueCursor[space]
		s.mu.Unlock()
		next, err := s.scanValues(space, from, sweepKeys, func(key, _ string, expires int64) {
			if expires < now.UnixMilli() {
				gone = append(gone, old{key, expires})
			}
		})
		if err != nil {
			s.log.Warn("sweep of the state file failed", zap.Error(err))
			continue
		}
		for _, o := range gone {
			s.values.Expire(space, o.key, o.expires, now)
		}
		s.mu.Lock()
		if s.valueCursor == nil {
			s.valueCursor = make(map[string]string)
		}
		s.valueCursor[space] = next
		s.mu.Unlock()
	}
}

// LoadValue implements store.Values.
func (s *Store) LoadValue(ctx context.Context, space, key string) (string, error) {
	return s.values.LoadValue(ctx, space, key)
}

// SwapValue implements store.Values.
func (s *Store) SwapValue(ctx context.Context, space, key, old, next string, expires time.Time) (bool, error) {
	if old == "" && s.values.Pending() >= maxDirty {
		return false, fmt.Errorf("%w: %d changes wait to be written", store.ErrUnavailable, s.values.Pending())
	}
	return s.values.SwapValue(ctx, space, key, old, next, expires)
}

// TakeMeters implements meter.Store.
func (s *Store) TakeMeters(ctx context.Context, now time.Time, takes []meter.Take, peek bool) ([]meter.Level, bool, error) {
	if s.values.Pending() >= maxDirty {
		return nil, false, fmt.Errorf("%w: %d changes wait to be written", store.ErrUnavailable, s.values.Pending())
	}
	return s.values.TakeMeters(ctx, now, takes, peek)
}

// EachValue implements store.Values. It writes first, so that the file knows
// all keys, and holds no transaction while it yields.
func (s *Store) EachValue(ctx context.Context, space string, yield func(key, value string, expires time.Time) bool) error {
	if err := s.flushValues(); err != nil {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	from := ""
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var keys []string
		next, err := s.scanValues(space, from, listBatch, func(key, _ string, _ int64) { keys = append(keys, key) })
		if err != nil {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		for _, key := range keys {
			value, expires, err := s.values.LoadExpiring(space, key)
			if err != nil {
				return err
			}
			if value != "" && !yield(key, value, expires) {
				return nil
			}
		}
		if from = next; from == "" {
			return nil
		}
	}
}

// CountValues implements store.Values.
func (s *Store) CountValues(space string) int { return s.values.CountValues(space) }
