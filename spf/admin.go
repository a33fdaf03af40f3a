package spf

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
)

// Question is what `postern spf test` asks.
type Question struct {
	IP     string `json:"ip"`
	Sender string `json:"sender"` // as in MAIL FROM, "" or "<>" for the null sender
	Helo   string `json:"helo"`
}

// maxQuestion is the most octets of a Question as JSON.
const maxQuestion = 16 << 10

// testTime bounds a test; its evaluations have their own limits below it.
const testTime = 2 * time.Minute

// Status is what `postern status` shows of the check.
type Status struct {
	Skip   []list.Status `json:"skip"`   // exceptions
	Relays []list.Status `json:"relays"` // whose clients are judged
}

// Status returns how the lists are.
func (c *Check) Status() Status { return Status{c.skip.Status(), c.relays.Status()} }

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	list.WriteStatus(w, "spf exceptions", s.Skip, now)
	list.WriteStatus(w, "spf relays", s.Relays, now)
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"POST /v1/spf/test": adminapi.Answer(func(r *http.Request) (any, error) {
			var q Question
			if err := adminapi.Decode(r, maxQuestion, &q); err != nil {
				return nil, err
			}
			addr, err := netip.ParseAddr(q.IP)
			if err != nil {
				return nil, fmt.Errorf("%q is not an IP address", q.IP)
			}
			ctx, cancel := context.WithTimeout(r.Context(), testTime)
			defer cancel()
			return c.Test(ctx, addr.Unmap().WithZone(""), mailaddr.ParsePath(q.Sender), q.Helo, time.Now()), nil
		}),
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// Test evaluates the records for a client.
func (c Admin) Test(ctx context.Context, q Question) (out Report, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/spf/test", q, &out)
	return out, err
}
