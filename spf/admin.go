package spf

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"postern/internal/mailaddr"
)

// TestPath is the administrator's call that [Check.ServeTest] answers, by POST
// with a [Question].
const TestPath = "/v1/spf/test"

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

// ServeTest answers a test with a [Report]. The error is for who asked.
func (c *Check) ServeTest(r *http.Request) (any, error) {
	var q Question
	if err := json.NewDecoder(io.LimitReader(r.Body, maxQuestion)).Decode(&q); err != nil {
		return nil, fmt.Errorf("the question cannot be read: %w", err)
	}
	addr, err := netip.ParseAddr(q.IP)
	if err != nil {
		return nil, fmt.Errorf("%q is not an IP address", q.IP)
	}
	ctx, cancel := context.WithTimeout(r.Context(), testTime)
	defer cancel()
	return c.Test(ctx, addr.Unmap().WithZone(""), mailaddr.ParsePath(q.Sender), q.Helo, time.Now()), nil
}
