// Package lookup is the lookup door: a socketmap server (socketmap_table(5))
// that answers Postfix's table look-ups from memory. What it answers from is
// any [Map]: the named tables of the configuration ([Tables]), generated
// domain mappings among them, and whatever the program plugs in, such as the
// networks of providers ([FromNetworks]).
//
// Postfix asks a socketmap for whole names and addresses only: parent domains,
// shorter networks and addresses without extension, which it tries in an
// indexed file, it leaves to the server. See search.go.
package lookup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Map answers look-ups. It is safe for concurrent use, and either answers from
// memory or minds ctx.
type Map interface {
	// Lookup returns the value of key, which is as Postfix sent it: not empty,
	// in the case of whoever typed it. A key that is not there is not an error;
	// an error makes Postfix try later. An empty value counts as an error, as
	// it does in Postfix.
	Lookup(ctx context.Context, key string) (value string, found bool, err error)
}

// MapFunc makes a Map of a function.
type MapFunc func(ctx context.Context, key string) (value string, found bool, err error)

// Lookup implements [Map].
func (f MapFunc) Lookup(ctx context.Context, key string) (value string, found bool, err error) {
	return f(ctx, key)
}

// Explainer is a Map that can say where its answer comes from.
type Explainer interface {
	Map
	// Explain is Lookup with the source of the answer.
	Explain(ctx context.Context, key string) (Answer, error)
}

// Answer is what a Map says, and why.
type Answer struct {
	Map   string `json:"map,omitempty"`
	Key   string `json:"key"`
	Found bool   `json:"found"`
	Value string `json:"value,omitempty"`
	// Asked is the key that was found, where that is not Key itself: a parent
	// domain, an address without extension.
	Asked string `json:"asked,omitempty"`
	// Place is "file:line", and Pattern what is written there.
	Place   string `json:"place,omitempty"`
	Pattern string `json:"pattern,omitempty"`
}

// Explain asks m, for the source of the answer too if m can say it.
func Explain(ctx context.Context, m Map, key string) (Answer, error) {
	if key == "" {
		return Answer{}, nil
	}
	if e, ok := m.(Explainer); ok {
		a, err := e.Explain(ctx, key)
		a.Key = key
		if err == nil && a.Found && a.Value == "" {
			err = errEmpty
		}
		return a, err
	}
	value, found, err := m.Lookup(ctx, key)
	if err == nil && found && value == "" {
		err = errEmpty
	}
	return Answer{Key: key, Found: found, Value: value}, err
}

// ErrUnknown is returned for a map that is not there.
var ErrUnknown = errors.New("lookup: there is no such table")

// errEmpty is what an empty value is: Postfix takes it as a mistake, whatever
// table it comes from.
var errEmpty = errors.New("the result is empty, which Postfix does not allow")

// Networks finds the network that an address is in. It is safe for concurrent
// use, and answers from memory.
type Networks interface {
	// Lookup returns what is to be answered for addr, an IPv4 or IPv6 address
	// but never an IPv4-mapped one.
	Lookup(addr netip.Addr) (value string, ok bool)
}

// FromNetworks makes a Map of networks: the keys are addresses as Postfix
// writes them. Names, which Postfix asks for as well, are not found.
func FromNetworks(n Networks) Map { return networks{n} }

type networks struct{ n Networks }

func (m networks) Lookup(_ context.Context, key string) (value string, found bool, err error) {
	addr, ok := parseAddr(key)
	if !ok {
		return "", false, nil
	}
	value, found = m.n.Lookup(addr)
	return value, found, nil
}

// parseAddr reads an address, with or without brackets.
func parseAddr(key string) (netip.Addr, bool) {
	if n := len(key); n > 2 && key[0] == '[' && key[n-1] == ']' {
		key = key[1 : n-1]
		if len(key) > 5 && strings.EqualFold(key[:5], "IPv6:") {
			key = key[5:]
		}
	}
	if len(key) > 45+16 || strings.IndexByte(key, '@') >= 0 { // 45 is the longest text, then a zone
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(key)
	if err != nil {
		return netip.Addr{}, false
	}
	return addr.WithZone("").Unmap(), true
}

var goodName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// unknownName is what metrics call a map that is not there.
const unknownName = "unknown"

// CheckName says whether a map can have the name: Postfix takes what follows
// the last colon of socketmap:inet:HOST:PORT:NAME, and parts table names at
// commas and white space.
func CheckName(name string) error {
	switch {
	case name == unknownName:
		return fmt.Errorf("the name %q is taken: it stands for tables that are not there", name)
	case !goodName.MatchString(name):
		return fmt.Errorf("%q cannot be the name of a table: letters, digits, dots, hyphens and underscores, at most 64, a letter or digit first", name)
	}
	return nil
}
