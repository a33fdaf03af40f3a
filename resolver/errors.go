package resolver

import (
	"context"
	"errors"

	"github.com/miekg/dns"
)

// Errors that a look-up can be told apart by, with [errors.Is]. A look-up
// whose caller's context ended also matches that context's error.
var (
	// ErrTemporary marks every failure that a later attempt may not meet.
	ErrTemporary = errors.New("temporary failure")
	// ErrTimeout means that no server answered in time, or that the caller's
	// deadline passed first.
	ErrTimeout = errors.New("timeout")
	// ErrServFail means that the servers could not find out (SERVFAIL, and
	// answers that make no sense).
	ErrServFail = errors.New("server failure")
	// ErrRefused means that the servers do not want to answer us.
	ErrRefused = errors.New("query refused")
	// ErrUnreachable means that no server could be reached.
	ErrUnreachable = errors.New("server unreachable")
	// ErrClosed means that the resolver has been closed.
	ErrClosed = errors.New("resolver closed")
	// ErrInvalidName marks a name that cannot be asked for: empty, longer
	// than DNS allows, with empty labels or with octets that no name in mail
	// has. It is not temporary, and no query was sent.
	ErrInvalidName = errors.New("invalid name")
)

// failure is a failed look-up. It never wraps an error of package net: some of
// those claim to be [context.DeadlineExceeded], which means here that the
// caller's context ended.
type failure struct {
	name   string
	qtype  uint16
	kind   error  // one of the above, or a context's error
	detail string // what happened last, for the log: "192.0.2.53:53: SERVFAIL"
}

// Error implements error.
func (f *failure) Error() string {
	s := "resolver: " + dns.TypeToString[f.qtype] + " " + f.name + ": " + f.kind.Error()
	if f.detail != "" {
		s += " (" + f.detail + ")"
	}
	return s
}

// Is reports the marks that hold besides the kind itself.
func (f *failure) Is(target error) bool {
	switch target {
	case ErrTemporary:
		return !errors.Is(f.kind, ErrInvalidName)
	case ErrTimeout:
		return errors.Is(f.kind, context.DeadlineExceeded)
	}
	return false
}

// Timeout reports whether it took too long, as [net.Error] has it.
func (f *failure) Timeout() bool { return errors.Is(f, ErrTimeout) }

// Unwrap returns the kind.
func (f *failure) Unwrap() error { return f.kind }
