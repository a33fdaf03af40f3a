package dmarcreport

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"postern/internal/mailaddr"
	"postern/internal/sendmail"
)

// destination is an address that wants reports.
type destination struct {
	Address string
	Limit   int64 // bytes of a message, 0 for any
}

// maxURIs is how many addresses of a record are looked at: each may take a
// question to the DNS.
const maxURIs = 10

// shorten returns what of a rua= is kept, "" when nobody wants reports there.
func shorten(rua string) string {
	if len(parseRUA(rua)) == 0 {
		return ""
	}
	if len(rua) > maxRUA {
		rua = rua[:max(0, strings.LastIndexByte(rua[:maxRUA+1], ','))]
		return shorten(rua)
	}
	return rua
}

// parseRUA reads the value of rua= (RFC 7489 section 6.2). What is no mail
// address that can be used is passed over.
func parseRUA(value string) (out []destination) {
	for uri := range strings.SplitSeq(value, ",") {
		uri = strings.TrimSpace(uri)
		scheme, rest, found := strings.Cut(uri, ":")
		if !found || !strings.EqualFold(scheme, "mailto") {
			continue
		}
		rest, _, _ = strings.Cut(rest, "?")
		rest, size, limited := strings.Cut(rest, "!")
		d := destination{}
		if limited {
			var ok bool
			if d.Limit, ok = parseSize(size); !ok {
				continue
			}
		}
		// "!" and "," in an address are written as %21 and %2C.
		addr, err := url.PathUnescape(rest)
		if err != nil || !sendmail.Address(addr) {
			continue
		}
		d.Address = addr
		if out = append(out, d); len(out) == maxURIs {
			break
		}
	}
	return out
}

// parseSize reads a size with its unit: k, m, g, t.
func parseSize(s string) (int64, bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	shift := 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("kmgt", s[n-1]); i >= 0 {
			shift, s = 10*(i+1), s[:n-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<20 && shift > 20 || s[0] == '+' {
		return 0, false
	}
	return n << shift, true
}

// verdicts on destinations.
type verified struct {
	to      []destination
	skipped []string // who does not want it, and why
	failed  []string // of whom that cannot be told now
}

// verify returns where a domain's reports may go, at most so many (RFC 7489
// section 7.1): an address of another organisation must want them, which its
// DNS says.
func (r *Reporter) verify(ctx context.Context, domain, rua string, most int) (out verified) {
	for _, d := range parseRUA(rua) {
		if len(out.to)+len(out.failed) >= most {
			break
		}
		host := d.host()
		if org := mailaddr.OrgDomain(host); host == domain || org != "" && org == mailaddr.OrgDomain(domain) {
			out.add(d)
			continue
		}
		texts, err := r.lookup(ctx, domain+"._report._dmarc."+host)
		if err != nil {
			out.failed = append(out.failed, d.Address+" ("+err.Error()+")")
			continue
		}
		wanted, instead := accepts(texts)
		switch {
		case !wanted:
			out.skipped = append(out.skipped, d.Address+" (its domain does not want reports for "+domain+")")
		case instead == "":
			out.add(d)
		default:
			// Another address, of the same host.
			for _, other := range parseRUA(instead) {
				if other.host() == host && len(out.to)+len(out.failed) < most {
					out.add(other)
				}
			}
		}
	}
	return out
}

// add adds a destination that is not there yet.
func (v *verified) add(d destination) {
	if !slices.ContainsFunc(v.to, func(o destination) bool { return o.Address == d.Address }) {
		v.to = append(v.to, d)
	}
}

// host is the domain of the address.
func (d *destination) host() string {
	return mailaddr.Domain(d.Address[strings.LastIndexByte(d.Address, '@')+1:])
}

// accepts reports whether one of the texts says that reports are wanted, and
// where they are wanted instead.
func accepts(texts []string) (wanted bool, rua string) {
	for _, text := range texts {
		first := true
		for tag := range strings.SplitSeq(text, ";") {
			name, value, _ := strings.Cut(tag, "=")
			name, value = strings.TrimSpace(name), strings.TrimSpace(value)
			switch {
			case first && (name != "v" || value != "DMARC1"):
				value = ""
			case first:
				wanted = true
			case wanted && strings.EqualFold(name, "rua"):
				rua = value
			}
			if first = false; !wanted {
				break
			}
		}
		if wanted {
			return true, rua
		}
	}
	return false, ""
}
