package greylist

import (
	"context"
	"time"

	"postern/policy"
)

// Voucher knows of senders who need not wait. It is safe for concurrent use.
type Voucher interface {
	// Vouch says why a request need not wait, "" when nobody knows:
	// "correspondent", "correspondent-domain" or "expected", and a detail for
	// the log. It is only asked about what would be delayed, changes nothing,
	// and returns by ctx's deadline. An error means that it could not tell.
	Vouch(ctx context.Context, req *policy.Request) (why, detail string, err error)
}

// vouchedReasons are the reasons for what a [Voucher] may say.
var vouchedReasons = map[string]string{
	"correspondent": "greylist-correspondent", "correspondent-domain": "greylist-correspondent-domain", "expected": "greylist-expected",
}

// vouched accepts what would be delayed, when somebody vouches for it. The
// triplet is recorded as one that has passed. It earns no credit, since nobody
// has waited.
func (c *Check) vouched(ctx context.Context, req *policy.Request, contact *Contact, own time.Duration) (v policy.Verdict, ok bool) {
	if c.voucher == nil {
		return v, false
	}
	why, detail, err := c.voucher.Vouch(ctx, req)
	switch {
	case err != nil:
		// It has been recorded as one that waits, and will pass as others do.
		if req.Probe != nil {
			req.Probe.Add("vouched for", err.Error(), "store", 0)
		}
		req.Facts.Missing = append(req.Facts.Missing, "correspondents")
		return v, false
	case why == "":
		if req.Probe != nil {
			req.Probe.Add("vouched for", "by nobody", "store", 0)
		}
		return v, false
	}
	if req.Probe != nil {
		req.Probe.Add("vouched for", why+": "+detail, "store", 0)
	}
	v = policy.Verdict{Reason: vouchedReasons[why], Detail: detail}
	if req.DryRun {
		return v, true
	}
	if n := c.metrics.vouched[why]; n != nil {
		n.Inc()
	}
	now := *contact
	now.Credit, now.Rule.Delay, now.Hold = "", 0, false
	out, err := c.store.TouchGreylist(ctx, &now)
	if err != nil {
		// It passes now, and is asked about again the next time.
		req.Facts.Missing = append(req.Facts.Missing, "greylist")
		return v, true
	}
	c.metrics.states[out.State].Inc()
	c.remember(req, contact, &out, own)
	return v, true
}

// vouchedHintAge is how long a hint holds where somebody may vouch: another
// node may have been told since.
const vouchedHintAge = 30 * time.Second

// hintAge is how old a hint may be that is used; 0 is no bound.
func (c *Check) hintAge() time.Duration {
	if c.voucher == nil {
		return 0
	}
	return vouchedHintAge
}

// ForgetHints drops what is remembered of delayed contacts, so that their next
// retry is judged anew.
func (c *Check) ForgetHints() {
	if c.hints != nil {
		c.hints.clear()
	}
}
