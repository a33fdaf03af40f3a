package auth

import (
	"io"
	"time"

	"postern/internal/adminapi"
	"postern/list"
	"postern/policy"
)

// Status is what `postern status` shows.
type Status struct {
	Skip   []list.Status `json:"skip"`
	Exempt []list.Status `json:"exempt"`
}

// Status returns how the lists are, nothing while it is off.
func (c *Check) Status() Status {
	if c.cfg.Mode == policy.Off {
		return Status{}
	}
	return Status{c.skip.Status(), c.exempt.Status()}
}

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	list.WriteStatus(w, "auth exceptions", s.Skip, now)
	list.WriteStatus(w, "dmarc exempt", s.Exempt, now)
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls { return nil }
