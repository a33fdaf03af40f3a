package store

import (
	"context"
	"time"
)

// Values are small values that checks keep under names, each space for
// itself. A value is never empty. All methods are safe for concurrent use and
// return by ctx's deadline.
type Values interface {
	// LoadValue returns a value, "" when there is none. An expired one may
	// still be returned.
	LoadValue(ctx context.Context, space, key string) (string, error)
	// SwapValue puts next in the place of old if old is what is there now, in
	// one atomic step, and reports whether it was. An empty old stands for no
	// value, an empty next removes it. After expires the value may be dropped.
	SwapValue(ctx context.Context, space, key, old, next string, expires time.Time) (swapped bool, err error)
	// EachValue calls yield for the values of a space until it returns false,
	// in the order of the store, with the time after which it may be dropped. A
	// value can come twice while it changes.
	EachValue(ctx context.Context, space string, yield func(key, value string, expires time.Time) bool) error
	// CountValues tells about how many values a space has. It does no I/O.
	CountValues(space string) int
}

// Space is one space of Values, for a check that knows of no other.
type Space struct {
	values Values
	name   string
}

// SpaceOf returns the space of that name: letters, digits and "-".
func SpaceOf(v Values, name string) Space { return Space{v, name} }

// Load is LoadValue.
func (s Space) Load(ctx context.Context, key string) (string, error) {
	return s.values.LoadValue(ctx, s.name, key)
}

// Swap is SwapValue.
func (s Space) Swap(ctx context.Context, key, old, next string, expires time.Time) (bool, error) {
	return s.values.SwapValue(ctx, s.name, key, old, next, expires)
}

// Each is EachValue, without the times.
func (s Space) Each(ctx context.Context, yield func(key, value string) bool) error {
	return s.values.EachValue(ctx, s.name, func(key, value string, _ time.Time) bool { return yield(key, value) })
}

// Count is CountValues.
func (s Space) Count() int { return s.values.CountValues(s.name) }

// maxValueKey is the most bytes of a key; a longer one is cut as the parts of
// greylist keys are.
const maxValueKey = maxPart

// ValueKey returns a key as it is stored.
func ValueKey(key string) string {
	if len(key) > maxValueKey {
		return Shorten(key)
	}
	return key
}
