// Package conf holds the value types and the fault list that the
// configuration of every package is made of.
package conf

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"postern/policy"
)

// Duration is a length of time in a configuration file: Go's syntax
// ("250ms", "1h30m") with d (24 h) and w (7 d) as further units.
type Duration time.Duration

// D returns the value as a [time.Duration].
func (d Duration) D() time.Duration { return time.Duration(d) }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// ParseDuration reads what [Duration] reads. The error says what is allowed.
func ParseDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	var total time.Duration
	rest := s
	for rest != "" {
		i := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if i <= 0 {
			return 0, badDuration(s)
		}
		j := i
		for j < len(rest) && (rest[j] < '0' || rest[j] > '9') && rest[j] != '.' {
			j++
		}
		number, unit := rest[:i], rest[i:j]
		rest = rest[j:]
		var one time.Duration
		switch unit {
		case "d":
			one = 24 * time.Hour
		case "w":
			one = 7 * 24 * time.Hour
		default:
			v, err := time.ParseDuration(number + unit)
			if err != nil {
				return 0, badDuration(s)
			}
			if total += v; total < 0 {
				return 0, badDuration(s)
			}
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || n*float64(one) > float64(1<<62) {
			return 0, badDuration(s)
		}
		if total += time.Duration(n * float64(one)); total < 0 {
			return 0, badDuration(s)
		}
	}
	if s == "" {
		return 0, badDuration(s)
	}
	return total, nil
}

func badDuration(s string) error {
	return fmt.Errorf("invalid duration %q (a number with a unit, such as 250ms, 90s, 5m, 4h, 36d, 2w)", s)
}

// String writes d in the form that UnmarshalText reads: whole days as d.
func (d Duration) String() string {
	const day = 24 * time.Hour
	v := time.Duration(d)
	switch {
	case v == 0:
		return "0s"
	case v%day == 0:
		return strconv.FormatInt(int64(v/day), 10) + "d"
	}
	s := v.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Step is the part of a check's section that the pipeline reads. Every check
// embeds it in its Config.
type Step struct {
	// Mode is "enforce" (default), "shadow" or "off".
	Mode policy.Mode `toml:"mode"`
	// OnError is what happens when the check cannot decide: "continue" or "defer".
	OnError policy.OnError `toml:"on_error"`
	// Timeout is the most time one evaluation may take.
	Timeout Duration `toml:"timeout"`
}

// Skippable are the checks that an allow entry, a provider's list or a permit
// can exempt from, with those of later versions.
var Skippable = []string{"access", "client", "greylist", "known", "limit", "provider", "rbl", "spf", "verify"}

// Fault is one thing that is wrong with the configuration.
type Fault struct {
	// Key is the full key in the configuration ("rbl.lists[2]"), when the
	// fault is a value of it.
	Key string
	// File, Line and Column say where, as far as known. For a Key the config
	// package fills them in. Line and Column count from 1; Column counts bytes.
	File         string
	Line, Column int
	// Text says what is wrong and, where it helps, what would be right.
	Text string
}

// Error implements error: "file:line:column: key: text".
func (f *Fault) Error() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d", f.Line)
			if f.Column > 0 {
				fmt.Fprintf(&b, ":%d", f.Column)
			}
		}
		b.WriteString(": ")
	}
	if f.Key != "" {
		b.WriteString(f.Key)
		b.WriteString(": ")
	}
	b.WriteString(f.Text)
	return b.String()
}

// Faults collects everything that is wrong, so that all of it can be
// reported at once. The zero value is empty and ready.
type Faults []*Fault

// Keyf adds a fault in the value of a configuration key.
func (fs *Faults) Keyf(key, format string, args ...any) {
	*fs = append(*fs, &Fault{Key: key, Text: fmt.Sprintf(format, args...)})
}

// Filef adds a fault in a file that the configuration names. Line and column
// count from 1; 0 means not known.
func (fs *Faults) Filef(file string, line, column int, format string, args ...any) {
	*fs = append(*fs, &Fault{File: file, Line: line, Column: column, Text: fmt.Sprintf(format, args...)})
}

// Err returns nil when there is no fault, else fs as an error.
func (fs Faults) Err() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}

// Error implements error: one line a fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}
