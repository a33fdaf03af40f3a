package rbl

import (
	"slices"
	"strings"
)

// Every list answers with addresses that stand for facts. Some stand for "we
// do not answer you", and would be read as a listing of everybody by software
// that does not know them. Two rules hold for all lists:
//
//   - An answer outside 127.0.0.0/8 comes from a name server that invents
//     answers, or from a domain that was sold, never from a list (RFC 5782
//     section 2.1).
//   - 127.255.255.0/24 is where operators put their error codes: Spamhaus
//     (spamhaus.org, "DNSBL return codes"), Validity, and others after them.
//
// The rows below are particular to a zone and all zones under it. 127.0.0.1
// is an error where no row says otherwise: URIBL and SURBL answer it to
// resolvers they refuse, and filtering resolvers (response policy zones, ad
// blockers) answer it for names they block.

// errorRow is a code of one operator, or of all.
type errorRow struct {
	zone   string // and all below; "" is every zone
	filter *Filter
	text   string
}

func mustFilter(s string) *Filter {
	f, err := ParseFilter(s)
	if err != nil {
		panic(err)
	}
	return f
}

// alwaysErrors are errors in every zone, whatever is configured.
var alwaysErrors = []errorRow{
	{"", mustFilter("127.255.255.252"), "127.255.255.252: typing error in the name of the list"},
	{"", mustFilter("127.255.255.254"), "127.255.255.254: asked through a public resolver, use your own"},
	{"", mustFilter("127.255.255.255"), "127.255.255.255: too many queries, or not authorised"},
	{"", mustFilter("127.255.255.[0..255]"), "an error code in 127.255.255.0/24"},
}

// errorRows is the shipped table of the other codes. `errors` of a zone
// replaces it for that zone.
var errorRows = []errorRow{
	// Spamhaus: domain zones do not take addresses.
	{"spamhaus.org", mustFilter("127.0.[1;2].255"), "an address was asked of a domain list"},
	{"spamhaus.net", mustFilter("127.0.[1;2].255"), "an address was asked of a domain list"},
	// dnswl.org: more than the free number of queries.
	{"dnswl.org", mustFilter("127.0.0.255"), "127.0.0.255: over the free number of queries"},
	// URIBL and SURBL: bit 1 is not used for listings.
	{"uribl.com", mustFilter("127.0.0.1"), "127.0.0.1: query refused, see uribl.com/refused.shtml"},
	{"surbl.org", mustFilter("127.0.0.1"), "127.0.0.1: access blocked"},
	{"", mustFilter("127.0.0.1"), "127.0.0.1 is no listing: blocked, or a resolver that filters"},
}

// notErrors are zones in which 127.0.0.1 is an answer like others.
var notErrors = []string{"hostkarma.junkemailfilter.com"}

// testPoints are names that are always listed, for domain lists that publish
// another one than TEST (RFC 5782 section 5). Either of both will do.
var testPoints = []struct{ zone, listed string }{
	{"dbl.spamhaus.org", "dbltest.com"},
	{"dbl.dq.spamhaus.net", "dbltest.com"},
	{"surbl.org", "surbl-org-permanent-test-point.com"},
	{"uribl.com", "test.uribl.com"},
}

// below reports whether zone is parent or lies under it.
func below(zone, parent string) bool {
	rest, ok := strings.CutSuffix(zone, parent)
	return ok && (parent == "" || rest == "" || strings.HasSuffix(rest, "."))
}

// errorsOf returns the error codes of a zone. configured replaces the table.
func errorsOf(zone string, configured []*Filter) []errorRow {
	rows := slices.Clip(alwaysErrors)
	if configured != nil {
		for _, f := range configured {
			rows = append(rows, errorRow{zone: zone, filter: f, text: "configured as an error"})
		}
		return rows
	}
	for _, z := range notErrors {
		if below(zone, z) {
			return rows
		}
	}
	for _, row := range errorRows {
		if below(zone, row.zone) {
			rows = append(rows, row)
		}
	}
	return rows
}

// errorText says why an answer is no listing, "" when it may be one.
func errorText(rows []errorRow, c code) string {
	if c[0] != 127 {
		return c.String() + " is outside 127.0.0.0/8: a resolver that invents answers, or a list that is gone"
	}
	for _, row := range rows {
		if row.filter.match(c) {
			if strings.HasPrefix(row.text, c.String()) {
				return row.text
			}
			return c.String() + ": " + row.text
		}
	}
	return ""
}

// testPointOf returns the name that a domain list publishes beside TEST, or "".
func testPointOf(zone string) string {
	for _, p := range testPoints {
		if below(zone, p.zone) {
			return p.listed
		}
	}
	return ""
}
