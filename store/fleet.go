package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Fleet keeps documents that the nodes of a fleet have in common: the newest
// of each name, and who may make the next. It is safe for concurrent use.
type Fleet struct {
	documents, leases Space
}

// FleetOf returns the fleet's part of a store that several nodes share.
func FleetOf(v Values) *Fleet {
	return &Fleet{SpaceOf(v, providerSpace), SpaceOf(v, leaseSpace)}
}

// keepDocument is how long a document is kept when nobody writes a newer one.
const keepDocument = 90 * 24 * time.Hour

// maxSwaps bounds how often a change is tried again when others change the
// same value.
const maxSwaps = 5

var errContended = errors.New("store: changed by others again and again")

// LoadProvider returns the document of a list and its serial if that is more
// than newer; nil when it is not, or there is none.
func (f *Fleet) LoadProvider(ctx context.Context, list string, newer uint64) (doc []byte, serial uint64, err error) {
	v, err := f.documents.Load(ctx, list)
	if err != nil || v == "" {
		return nil, 0, err
	}
	number, text, _ := strings.Cut(v, "\n")
	if serial, err = strconv.ParseUint(number, 10, 64); err != nil {
		return nil, 0, fmt.Errorf("store: document of %s: %w", list, err)
	}
	if serial <= newer {
		return nil, serial, nil
	}
	return []byte(text), serial, nil
}

// SaveProvider keeps the document of a list unless there is one whose serial
// is not less, and reports whether it was kept.
func (f *Fleet) SaveProvider(ctx context.Context, list string, doc []byte, serial uint64) (bool, error) {
	next := strconv.FormatUint(serial, 10) + "\n" + string(doc)
	for range maxSwaps {
		old, err := f.documents.Load(ctx, list)
		if err != nil {
			return false, err
		}
		if old != "" {
			number, _, _ := strings.Cut(old, "\n")
			if n, err := strconv.ParseUint(number, 10, 64); err == nil && n >= serial {
				return false, nil
			}
		}
		if ok, err := f.documents.Swap(ctx, list, old, next, time.Now().Add(keepDocument)); ok || err != nil {
			return ok, err
		}
	}
	return false, errContended
}

// LeaseProvider makes node the one that reads the records of a list, for so
// long, and reports whether it is. Who has the lease may renew it.
func (f *Fleet) LeaseProvider(ctx context.Context, list, node string, d time.Duration) (bool, error) {
	now := time.Now()
	next := node + "\n" + strconv.FormatInt(now.Add(d).UnixMilli(), 10)
	for range maxSwaps {
		old, err := f.leases.Load(ctx, list)
		if err != nil {
			return false, err
		}
		holder, until, _ := strings.Cut(old, "\n")
		if end, err := strconv.ParseInt(until, 10, 64); err == nil && holder != node && now.UnixMilli() < end {
			return false, nil
		}
		if ok, err := f.leases.Swap(ctx, list, old, next, now.Add(d)); ok || err != nil {
			return ok, err
		}
	}
	return false, errContended
}
