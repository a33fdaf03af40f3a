package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/adminapi"
)

// Item is one line of exported state: what one record tells. It has one of
// Greylist and Value.
type Item struct {
	Greylist *greylist.Entry `json:"greylist,omitempty"`
	Value    *Value          `json:"value,omitempty"`
	// Base64 says that all texts are in base64 (RFC 4648), because one is not UTF-8.
	Base64 bool `json:"base64,omitempty"`
}

// Value is one value of a space.
type Value struct {
	Space   string    `json:"space"`
	Key     string    `json:"key"`
	Value   string    `json:"value"`
	Expires time.Time `json:"expires"`
}

// texts are the texts of an item that clients and servers may have chosen.
func (it *Item) texts() []*string {
	if e := it.Greylist; e != nil {
		return []*string{&e.Match, &e.Credit, &e.Sender, &e.Recipient}
	}
	return []*string{&it.Value.Key, &it.Value.Value}
}

// Encode makes an item fit for JSON, which holds only UTF-8.
func (it *Item) Encode() {
	if it.Base64 {
		return
	}
	valid := func(s *string) bool { return utf8.ValidString(*s) }
	texts := it.texts()
	if !slices.ContainsFunc(texts, func(s *string) bool { return !valid(s) }) {
		return
	}
	it.Base64 = true
	for _, s := range texts {
		*s = base64.StdEncoding.EncodeToString([]byte(*s))
	}
}

// Check reports what is wrong with an item that somebody has written, and takes
// it out of base64.
func (it *Item) Check() error {
	if (it.Greylist == nil) == (it.Value == nil) {
		return errors.New(`want one of "greylist" and "value"`)
	}
	if it.Base64 {
		for _, s := range it.texts() {
			b, err := base64.StdEncoding.DecodeString(*s)
			if err != nil {
				return fmt.Errorf("%q is not base64", *s)
			}
			*s = string(b)
		}
		it.Base64 = false
	}
	if e := it.Greylist; e != nil {
		return checkEntry(e)
	}
	v := it.Value
	switch {
	case !slices.Contains(moved, v.Space):
		return fmt.Errorf("space %q is not known", v.Space)
	case v.Key == "":
		return errors.New("a value without a key")
	case v.Value == "":
		return errors.New("an empty value")
	case v.Expires.IsZero():
		return errors.New(`a value without "expires"`)
	}
	return nil
}

func checkEntry(e *greylist.Entry) error {
	switch {
	case e.Kind != greylist.KindTriplet && e.Kind != greylist.KindCredit && e.Kind != greylist.KindWaiting:
		return fmt.Errorf("kind %q: one of triplet, credit, waiting", e.Kind)
	case e.First.IsZero() || e.Last.IsZero():
		return errors.New(`an entry without "first" and "last"`)
	case e.Last.Before(e.First):
		return errors.New(`"last" is before "first"`)
	case e.Attempts < 0 || e.Passes < 0:
		return errors.New("a negative count")
	case e.Kind == greylist.KindCredit && e.Credit == "":
		return errors.New(`a credit without "credit"`)
	case e.Kind != greylist.KindCredit && (e.Match == "" || e.Recipient == ""):
		return fmt.Errorf(`a %s without "match" and "recipient"`, e.Kind)
	}
	return nil
}

// Imported counts what became of items.
type Imported struct {
	Greylist greylist.Merged `json:"greylist"`
	Values   greylist.Merged `json:"values"`
}

// Add adds counts.
func (i *Imported) Add(j Imported) {
	i.Greylist.Add(j.Greylist)
	i.Values.Add(j.Values)
}

// Export calls yield for all that is worth moving to another store, until it
// returns false. What changes meanwhile may be as before or as after.
func Export(ctx context.Context, s Store, now time.Time, yield func(Item) bool) error {
	more := true
	err := s.ListGreylist(ctx, greylist.Filter{}, now, func(e greylist.Entry) bool {
		it := Item{Greylist: &e}
		it.Encode()
		more = yield(it)
		return more
	})
	for _, space := range moved {
		if err != nil || !more {
			break
		}
		err = s.EachValue(ctx, space, func(key, value string, expires time.Time) bool {
			if expires.Before(now) {
				return true
			}
			it := Item{Value: &Value{space, key, value, expires}}
			it.Encode()
			more = yield(it)
			return more
		})
	}
	return err
}

// Import adds what checked items tell. Greylisting's entries are merged, of
// values those are taken for which there is none: what the store knows itself
// is newer. An error means that some of them may have been taken; the same
// again does no harm.
func Import(ctx context.Context, s Store, items []Item, r *greylist.Rule, now time.Time) (out Imported, err error) {
	var entries []greylist.Entry
	for i := range items {
		if e := items[i].Greylist; e != nil {
			entries = append(entries, *e)
			continue
		}
		v := items[i].Value
		if v.Expires.Before(now) {
			out.Values.Old++
			continue
		}
		taken, err := s.SwapValue(ctx, v.Space, v.Key, "", v.Value, v.Expires)
		switch {
		case err != nil:
			return out, err
		case taken:
			out.Values.Taken++
		default:
			out.Values.Known++
		}
	}
	out.Greylist, err = s.MergeGreylist(ctx, entries, r, now)
	return out, err
}

// Bounds of one call of import.
const (
	MaxItems     = 500
	maxItemBytes = 16 << 20
)

// Calls are what a store offers the administrator. rule is that of greylisting
// in force.
func Calls(s Store, rule func() greylist.Rule, log *zap.Logger) adminapi.Calls {
	log = log.Named("store")
	return adminapi.Calls{
		"GET /v1/state": adminapi.Lines(log, func(r *http.Request, yield func(Item) bool) error {
			return adminapi.Unavailable(Export(r.Context(), s, time.Now(), yield))
		}),
		"POST /v1/state": adminapi.Answer(func(r *http.Request) (any, error) {
			var items []Item
			if err := adminapi.Decode(r, maxItemBytes, &items); err != nil {
				return nil, err
			}
			if len(items) > MaxItems {
				return nil, fmt.Errorf("%d items in one call, at most %d", len(items), MaxItems)
			}
			for i := range items {
				if err := items[i].Check(); err != nil {
					return nil, fmt.Errorf("item %d: %w", i+1, err)
				}
			}
			in := rule()
			out, err := Import(r.Context(), s, items, &in, time.Now())
			return out, adminapi.Unavailable(err)
		}),
	}
}

// Admin makes a store's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Export calls yield for each item of the daemon's state until it returns false.
func (a Admin) Export(ctx context.Context, yield func(Item) bool) error {
	return adminapi.Each(ctx, a.Client, "/v1/state", yield)
}

// Import hands over items, at most [MaxItems] at once.
func (a Admin) Import(ctx context.Context, items []Item) (out Imported, err error) {
	err = a.Call(ctx, http.MethodPost, "/v1/state", items, &out)
	return out, err
}
