package spf

import (
	"context"
	"strconv"
	"strings"
	"time"

	"postern/internal/spfrecord"
	"postern/policy"
)

const (
	// maxExplanation is the most octets of a stranger's words in a reply.
	maxExplanation = 160
	// explainTime bounds the look-up, after the decision to refuse.
	explainTime = time.Second
)

// explain returns what the domain's owner has to say about a fail (RFC 7208
// section 6.2), fit for a reply: one line of printable ASCII. It is "" where
// there is nothing, or nothing that could be used.
func (c *Check) explain(ctx context.Context, o *Outcome, q query, now time.Time) string {
	where, err := spfrecord.ParseExplanation(o.exp)
	if o.exp == "" || err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, explainTime)
	defer cancel()
	e := &evaluation{query: q, ctx: ctx, res: c.res, plans: c.shared.plans, ttl: longest}
	if e.local == "" {
		e.local = "postmaster"
	}
	name, err := where.Expand(func(letter byte) (string, bool) { return e.macro(letter, o.expDomain) })
	if name = lower(name); err != nil || !isName(name) {
		return ""
	}
	texts, _, _, err := c.res.LookupTXT(ctx, name)
	if err != nil || len(texts) != 1 || !ascii(texts[0]) {
		return ""
	}
	text, err := spfrecord.ParseExplanation(texts[0])
	if err != nil {
		return ""
	}
	words, err := text.ExpandText(func(letter byte) (string, bool) {
		switch letter {
		case 'c':
			return q.addr.String(), true
		case 'r':
			return c.hostname, true
		case 't':
			return strconv.FormatInt(now.Unix(), 10), true
		}
		return e.macro(letter, o.expDomain)
	})
	if err != nil {
		return ""
	}
	if words = strings.TrimSpace(policy.Printable(words)); len(words) > maxExplanation {
		words = words[:maxExplanation-3] + "..."
	}
	return words
}
