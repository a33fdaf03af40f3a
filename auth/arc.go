package auth

import (
	"context"
	"slices"
	"strings"

	"postern/internal/dkimverify"
	"postern/internal/mailaddr"
)

// trusts reports whether a sealer is one of those that the operator trusts.
func (c *Check) trusts(sealer string) bool {
	sealer = mailaddr.Domain(sealer)
	return slices.ContainsFunc(c.cfg.ARC.TrustedSealers, func(s string) bool {
		above, wide := strings.CutPrefix(s, ".")
		above = mailaddr.Domain(above)
		return sealer == above || wide && strings.HasSuffix(sealer, "."+above)
	})
}

// vouched says who vouches for an author whose message fails here: a trusted
// sealer of a valid chain, who has seen it pass. Only sets are believed above
// which all are sealed by trusted ones. It returns "" for nobody.
func (c *Check) vouched(ctx context.Context, d *discovery, chain *dkimverify.Chain, author string) string {
	if chain.Result != dkimverify.Pass || len(c.cfg.ARC.TrustedSealers) == 0 {
		return ""
	}
	for _, set := range slices.Backward(chain.Sets) {
		if !c.trusts(set.Sealer) {
			return ""
		}
		_, claims, ok := parseResults(set.Results)
		if ok && d.passes(ctx, claims, author) {
			return mailaddr.Domain(set.Sealer)
		}
	}
	return ""
}

// passes reports whether results say that a message of an author has passed:
// DMARC itself, or SPF or DKIM for an aligned domain.
func (d *discovery) passes(ctx context.Context, claims []claim, author string) bool {
	r, err := d.policy(ctx, author)
	if err != nil || r == nil {
		return false
	}
	for i := range claims {
		c := &claims[i]
		if c.result != "pass" {
			continue
		}
		domain, strict := "", false
		switch c.method {
		case "dmarc":
			if c.domain("header.from") == author {
				return true
			}
			continue
		case "dkim":
			domain, strict = c.domain("header.d"), r.adkim
			if domain == "" {
				domain = c.domain("header.i")
			}
		case "spf":
			domain, strict = c.domain("smtp.mailfrom"), r.aspf
		}
		if domain == "" {
			continue
		}
		if ok, err := d.aligned(ctx, domain, author, strict); ok && err == nil {
			return true
		}
	}
	return false
}
