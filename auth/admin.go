package auth

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"postern/internal/adminapi"
	"postern/internal/mailaddr"
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
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"POST /v1/auth/test": adminapi.Answer(func(r *http.Request) (any, error) {
			var q Question
			if err := adminapi.Decode(r, maxQuestion, &q); err != nil {
				return nil, err
			}
			addr, err := netip.ParseAddr(q.Client)
			if err != nil {
				return nil, fmt.Errorf("%q is not an IP address", q.Client)
			}
			ctx, cancel := context.WithTimeout(r.Context(), testTime)
			defer cancel()
			return c.Test(ctx, &policy.Request{
				Time: time.Now(), Stage: policy.StageData, Door: "explain", DryRun: true,
				Client: policy.Client{Addr: addr.Unmap().WithZone(""), Name: mailaddr.Domain(q.Name), ReverseName: mailaddr.Domain(q.Name)},
				Helo:   q.Helo, Sender: mailaddr.ParsePath(q.Sender), SASL: policy.SASL{Username: q.Login},
			}, q.Message), nil
		}),
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Test shows a message to the check.
func (c Admin) Test(ctx context.Context, q Question) (out Report, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/auth/test", q, &out)
	return out, err
}
