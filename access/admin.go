package access

import (
	"context"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"postern/internal/adminapi"
	"postern/list"
)

// WriteStatus implements adminapi.Status.
func (s Status) WriteStatus(w io.Writer, now time.Time) {
	list.WriteStatus(w, "allow", s.Allow, now)
	list.WriteStatus(w, "deny", s.Deny, now)
	list.WriteStatus(w, "tables", s.Tables, now)
}

// Calls are what the check offers the administrator.
func (c *Check) Calls() adminapi.Calls {
	return adminapi.Calls{
		"GET /v1/access": adminapi.Lines(zap.NewNop(), func(_ *http.Request, yield func(Entry) bool) error {
			c.Entries(time.Now(), yield)
			return nil // it cannot fail
		}),
	}
}

// Admin makes the check's calls at a running daemon.
type Admin struct{ *adminapi.Client }

// List calls yield for each entry until it returns false.
func (c Admin) List(ctx context.Context, yield func(Entry) bool) error {
	return adminapi.Each(ctx, c.Client, "/v1/access", yield)
}
