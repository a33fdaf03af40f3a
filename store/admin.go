package store

import (
	"fmt"
	"io"
	"time"

	"postern/internal/adminapi"
)

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	fmt.Fprintf(w, "store     %s %s: ", s.Kind, s.Where)
	if s.Healthy {
		fmt.Fprint(w, "healthy")
	} else {
		fmt.Fprint(w, "NOT USABLE")
	}
	if s.Entries > 0 {
		fmt.Fprintf(w, ", %d entries", s.Entries)
	}
	if s.Breaker != "" {
		fmt.Fprintf(w, ", breaker %s", s.Breaker)
	}
	if !s.Flushed.IsZero() {
		fmt.Fprintf(w, ", written %s ago in %s", adminapi.Ago(now, s.Flushed), adminapi.Tidy(s.FlushTook))
	}
	fmt.Fprintln(w)
	if f := s.Fallback; f != nil {
		switch {
		case f.Alone:
			fmt.Fprintf(w, "          THIS GATEWAY GOES ON BY ITSELF for %s, with its %s store; %d records to be merged\n", adminapi.Ago(now, f.Since), f.Kind, f.ToMerge)
		default:
			fmt.Fprintf(w, "          fallback: %s %s, %d entries\n", f.Kind, f.Where, f.Entries)
		}
		if !f.Healthy {
			fmt.Fprintf(w, "          the fallback is NOT USABLE: %s\n", f.LastError)
		}
	}
	r := s.Room
	fmt.Fprintf(w, "          %d first contacts wait, %d fit in", r.Waiting, r.Most)
	if r.Pressed {
		fmt.Fprintf(w, "; FULL: at the present rate the oldest lives for %s", adminapi.Tidy(r.Lives))
	}
	if r.TooShort {
		fmt.Fprint(w, ", TOO SHORT for a retry")
	}
	fmt.Fprintln(w)
	if r.PushedOut > 0 || r.Unremembered > 0 {
		fmt.Fprintf(w, "          %d first contacts made room for others, %d passes could not be remembered\n", r.PushedOut, r.Unremembered)
	}
	if s.LastError != "" {
		fmt.Fprintf(w, "          last error %s ago: %s\n", adminapi.Ago(now, s.ErrorAt), s.LastError)
	}
}
