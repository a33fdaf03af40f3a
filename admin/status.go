package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"postern/internal/adminapi"
	"postern/policy"
)

// Status is what `postern status` shows: what is about the whole daemon, then
// its parts.
type Status struct {
	Version  string                 `json:"version"`
	PID      int                    `json:"pid"`
	Hostname string                 `json:"hostname"`
	Started  time.Time              `json:"started"`
	Mode     policy.Mode            `json:"mode"`
	Config   ConfigStatus           `json:"config"`
	Chains   map[string][]CheckMode `json:"chains"`
	// Goroutines tells a leak.
	Goroutines int      `json:"goroutines"`
	Warnings   []string `json:"warnings,omitempty"`
	// Parts stand in the JSON under their names, beside what is above.
	Parts []Part `json:"-"`
}

// Part is what a part of the daemon says of itself.
type Part struct {
	Name   string
	Status adminapi.Status
}

// MarshalJSON writes the parts as members; those that are null are left out.
func (s *Status) MarshalJSON() ([]byte, error) {
	type whole Status // without this method
	b, err := json.Marshal((*whole)(s))
	if err != nil {
		return nil, err
	}
	b = b[:len(b)-1]
	for _, p := range s.Parts {
		value, err := json.Marshal(p.Status)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		if bytes.Equal(value, []byte("null")) {
			continue
		}
		b = fmt.Appendf(b, ",%q:%s", p.Name, value)
	}
	return append(b, '}'), nil
}

// WriteStatus writes all of it for people.
func (s *Status) WriteStatus(w io.Writer, now time.Time) {
	fmt.Fprintf(w, "postern %s on %s, pid %d, up %s", s.Version, s.Hostname, s.PID, adminapi.Ago(now, s.Started))
	if s.Mode != policy.Enforce {
		fmt.Fprintf(w, ", the whole daemon in %s mode", s.Mode)
	}
	fmt.Fprintf(w, "\nconfig    %s, read %s ago\n", s.Config.Path, adminapi.Ago(now, s.Config.Loaded))
	if s.Config.Fault != "" {
		fmt.Fprintf(w, "          RELOAD REFUSED %s ago, the configuration above stays in force:\n", adminapi.Ago(now, s.Config.FaultAt))
		for line := range strings.Lines(s.Config.Fault) {
			fmt.Fprintf(w, "          %s\n", strings.TrimRight(line, "\n"))
		}
	}
	if len(s.Config.Restarts) > 0 {
		fmt.Fprintf(w, "          waits for a restart: %s\n", strings.Join(s.Config.Restarts, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Chains)) {
		checks := make([]string, len(s.Chains[name]))
		for i, c := range s.Chains[name] {
			checks[i] = c.Check
			if c.Mode != policy.Enforce {
				checks[i] += " (" + c.Mode.String() + ")"
			}
		}
		fmt.Fprintf(w, "chain     %s: %s\n", name, strings.Join(checks, ", "))
	}
	for _, p := range s.Parts {
		p.Status.WriteStatus(w, now)
	}
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "warning   %s\n", warning)
	}
}

// ConfigStatus tells which configuration runs.
type ConfigStatus struct {
	Path     string    `json:"path"`
	Loaded   time.Time `json:"loaded"`
	Fault    string    `json:"fault,omitempty"`    // why the last reload was refused
	FaultAt  time.Time `json:"fault_at,omitzero"`  // when it was
	Restarts []string  `json:"restarts,omitempty"` // changed settings that wait for a restart
}

// CheckMode is a check of a chain and the mode in which it runs there.
type CheckMode struct {
	Check string      `json:"check"`
	Mode  policy.Mode `json:"mode"`
}
