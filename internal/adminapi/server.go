// Package adminapi is what the administrator's calls are made of, at both ends:
// a check's folder holds its calls, what answers them in the daemon and what
// makes them for the command line, and the daemon's own door (package admin)
// serves them without knowing any check.
package adminapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"

	"go.uber.org/zap"
)

// Calls are what a part of the daemon offers the administrator, by "METHOD
// /path" as [http.ServeMux] takes it.
type Calls map[string]http.Handler

// statusError is an error with the HTTP status that it is answered with.
type statusError struct {
	error
	code int
}

// Unwrap is for errors.Is.
func (e statusError) Unwrap() error { return e.error }

// NotFound marks what was asked for as not there: 404.
func NotFound(err error) error { return statusError{err, http.StatusNotFound} }

// Unavailable marks a fault that is not the request's: 503.
func Unavailable(err error) error {
	if err == nil {
		return nil
	}
	return statusError{err, http.StatusServiceUnavailable}
}

// Refused marks an order that cannot be carried out: 422.
func Refused(err error) error { return statusError{err, http.StatusUnprocessableEntity} }

// Unauthorized marks a request without the right to it: 401.
func Unauthorized(err error) error { return statusError{err, http.StatusUnauthorized} }

// Answer answers with the value of f as JSON, or says what is wrong: with the
// request, 400, unless the error is marked otherwise.
func Answer(f func(r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			Fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the client is gone: nobody to tell
	})
}

// Text is Answer for plain text.
func Text(f func(r *http.Request) (string, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := f(r)
		if err != nil {
			Fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(text)) // the client is gone: nobody to tell
	})
}

// Lines answers with one JSON value a line as list yields them, so that many are
// never held in memory. list stops when yield returns false.
func Lines[T any](log *zap.Logger, list func(r *http.Request, yield func(T) bool) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		enc := json.NewEncoder(w)
		wrote := false
		err := list(r, func(v T) bool {
			if !wrote {
				w.Header().Set("Content-Type", "application/jsonl")
				wrote = true
			}
			return enc.Encode(v) == nil
		})
		switch {
		case err != nil && wrote:
			// The status line is gone; a broken body is the honest end.
			log.Warn("a listing broke off", zap.String("path", r.URL.Path), zap.Error(err))
			_ = http.NewResponseController(w).Flush() // what there is
			panic(http.ErrAbortHandler)
		case err != nil:
			Fail(w, err)
		case !wrote:
			w.Header().Set("Content-Type", "application/jsonl")
			w.WriteHeader(http.StatusOK)
		}
	})
}

// failure is how an error is written.
type failure struct {
	Error string `json:"error"`
}

// Fail answers with an error, see [Answer].
func Fail(w http.ResponseWriter, err error) {
	code := http.StatusBadRequest
	if marked := (statusError{}); errors.As(err, &marked) {
		code = marked.code
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		code = http.StatusRequestEntityTooLarge
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(failure{err.Error()}) // as in Answer
}

// Decode reads the body of a request, of most bytes at the most, into v. Keys
// that v does not have are errors.
func Decode(r *http.Request, most int64, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, most))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the request cannot be read: something follows its JSON value")
	}
	return nil
}

// Limit returns the number of a query's "limit", 0 when there is none.
func Limit(r *http.Request) (int, error) {
	s := r.URL.Query().Get("limit")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("limit=%q is not a number", s)
	}
	return n, nil
}

// Addr returns the IP address in a path, without its zone, IPv4 as such.
func Addr(r *http.Request, name string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(r.PathValue(name))
	if err != nil {
		return addr, fmt.Errorf("%q is not an IP address", r.PathValue(name))
	}
	return addr.Unmap().WithZone(""), nil
}
