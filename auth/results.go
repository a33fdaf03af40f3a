package auth

import (
	"strings"

	"postern/internal/dkimverify"
	"postern/internal/fieldtext"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Bounds of what a stranger can put into the field.
const (
	maxDomain   = 128
	maxSelector = 64
	maxWord     = 32
)

// format returns the value of Authentication-Results (RFC 8601), folded behind
// each result.
func format(id string, req *policy.Request, r *results) string {
	b := make([]byte, 0, 512)
	b = fieldtext.AppendWord(b, id)
	b = append(b, ";\n\tspf="...)
	if r.spf.Result == "" {
		b = append(b, "none"...)
	} else {
		b = append(b, r.spf.Result...)
	}
	if r.spf.Domain != "" {
		if r.spf.Identity == "helo" {
			b = append(b, " smtp.helo="...)
		} else {
			b = append(b, " smtp.mailfrom="...)
		}
		b = fieldtext.AppendWord(b, cut(r.spf.Domain, maxDomain))
	}
	if len(r.dkim) == 0 {
		b = append(b, ";\n\tdkim=none"...)
	}
	for i := range r.dkim {
		s := &r.dkim[i]
		b = append(append(b, ";\n\tdkim="...), s.Result...)
		if s.Reason != "" {
			b = append(b, " ("...)
			b = fieldtext.AppendComment(b, cut(s.Reason, maxDomain))
			b = append(b, ')')
		}
		b = append(b, " header.d="...)
		b = fieldtext.AppendWord(b, cut(s.Domain, maxDomain))
		b = append(b, " header.s="...)
		b = fieldtext.AppendWord(b, cut(s.Selector, maxSelector))
		b = append(b, " header.a="...)
		b = fieldtext.AppendWord(b, cut(s.Algorithm, maxWord))
		b = append(b, " header.b="...)
		b = fieldtext.AppendQuoted(b, cut(s.Prefix, maxWord))
	}
	if r.chain.Result != dkimverify.None {
		// RFC 8617 knows of no temporary error.
		result, reason := r.chain.Result, r.chain.Reason
		if result == dkimverify.TempError {
			result = dkimverify.Fail
		}
		b = append(append(b, ";\n\tarc="...), result...)
		if n := len(r.chain.Sets); n > 0 && reason == "" {
			reason = "sealed by " + r.chain.Sets[n-1].Sealer
		}
		b = append(b, " ("...)
		b = fieldtext.AppendComment(b, cut(reason, maxDomain))
		b = append(b, ") smtp.remote-ip="...)
		b = fieldtext.AppendWord(b, req.Client.Addr.String())
	}
	for i := range r.authors {
		a := &r.authors[i]
		b = append(append(b, ";\n\tdmarc="...), a.Result...)
		if a.Record != "" {
			b = append(append(b, " (p="...), a.Published...)
			if a.Wish != "" && a.Wish != a.Published {
				b = append(append(b, ", here "...), a.Wish...)
			}
			if a.Sealer != "" {
				b = append(b, ", passed at "...)
				b = fieldtext.AppendComment(b, cut(a.Sealer, maxDomain))
			}
			b = append(b, ')')
		}
		b = append(b, " header.from="...)
		b = fieldtext.AppendWord(b, cut(a.Domain, maxDomain))
	}
	if r.badFrom != "" {
		b = append(b, ";\n\tdmarc=permerror ("...)
		b = fieldtext.AppendComment(b, r.badFrom)
		b = append(b, ')')
	}
	b = append(b, ";\n\tiprev="...)
	switch {
	case req.Client.Name != "":
		b = append(b, "pass"...)
	case req.Client.ReverseName != "":
		b = append(b, "fail"...)
	default:
		b = append(b, "permerror"...)
	}
	b = append(b, " policy.iprev="...)
	b = fieldtext.AppendWord(b, req.Client.Addr.String())
	if req.SASL.Username != "" {
		b = appendLogin(b, req)
	}
	return string(b)
}

// formatOwn is the value for mail of a user who has logged in.
func formatOwn(id string, req *policy.Request) string {
	return string(appendLogin(fieldtext.AppendWord(nil, id), req))
}

// appendLogin says that the client has logged in, and not as whom: the message
// goes to strangers.
func appendLogin(b []byte, req *policy.Request) []byte {
	b = append(b, ";\n\tauth=pass smtp.mailfrom="...)
	return fieldtext.AppendQuoted(b, cut(req.Sender.Domain, maxDomain))
}

// authservID returns who says the results in a field (RFC 8601 section 2.2). A
// field that cannot be read that far is not ok.
func authservID(value string) (id string, ok bool) {
	s := value
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" || s[0] != '(' {
			break
		}
		rest, err := mailaddr.SkipComment(s)
		if err != nil {
			return "", false
		}
		s = rest
	}
	if s == "" {
		return "", false
	}
	if s[0] == '"' {
		text, _, err := mailaddr.Quoted(s)
		return strings.TrimSpace(text), err == nil
	}
	end := strings.IndexAny(s, " \t\r\n;(/")
	if end < 0 {
		end = len(s)
	}
	return s[:end], end > 0
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// printable returns s for a line of text, cut to n bytes.
func printable(s string, n int) string {
	return string(fieldtext.AppendComment(nil, cut(s, n)))
}
