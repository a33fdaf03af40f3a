package mailaddr

import (
	"strings"

	"postern/policy"
)

// Correspondent returns the form in which an envelope address is compared with
// those of other messages: what changes from one message or retry to the next
// is taken out, or stands as #. Domains compare without case, and so do local
// parts here: nobody is delayed for a capital. The form is its own form. It is
// "" for the null sender only.
//
//	user+ext@d            user@d           extension
//	prvs=0123abcdef=u@d   u@d              BATV (draft-levine-smtp-batv), also
//	prvs=u=0123abcdef@d                    with the tag behind the user, and
//	                                       btv1==...=u (Barracuda), msprvs1=...=u (Momentum)
//	SRS0=xxxx=tt=dom=u@d  srs0=#=#=dom=u@d             SRS: hash and time
//	SRS1=xxxx=h==xxxx=tt=dom=u@d  srs1=#=h==#=#=dom=u@d
//	list-bounce-1234-u=dom@d  list-bounce-#-u=dom@d    VERP, numbers of messages
func Correspondent(a policy.Address, delimiters string) string {
	if a.Raw == "" {
		return ""
	}
	local := untagged(strings.ToLower(a.Local))
	if form, ok := srs(local); ok {
		local = form
	} else {
		local, _, _ = SplitExtension(local, delimiters)
	}
	local = numbers(local)
	switch n := len(local); {
	case a.Domain == "":
		return local
	case len(a.Raw) == n+1+len(a.Domain) && a.Raw[:n] == local && a.Raw[n+1:] == a.Domain:
		return a.Raw // as it came
	}
	return local + "@" + a.Domain
}

// untagged takes the tags of BATV off a local part.
func untagged(local string) string {
	for {
		rest, ok := strings.CutPrefix(local, "prvs=")
		if !ok {
			rest, ok = strings.CutPrefix(local, "msprvs1=")
		}
		if !ok {
			rest, ok = strings.CutPrefix(local, "btv1==")
			_, rest, _ = strings.Cut(rest, "=") // its tag ends in two
		}
		if !ok {
			return local
		}
		tag, user, ok := strings.Cut(rest, "=")
		if !ok || user == "" {
			return local
		}
		if strings.HasPrefix(local, "prvs=") && tag != "" && !prvsTag(tag) {
			// Some put it behind the user, who may hold a = of his own.
			if i := strings.LastIndexByte(rest, '='); prvsTag(rest[i+1:]) {
				user = rest[:i]
			}
		}
		local = user
	}
}

// prvsTag reports whether s is the tag of a BATV address: the number of a key,
// three digits of a day, and six hexadecimal digits of a hash.
func prvsTag(s string) bool {
	if len(s) != 10 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (i < 4 || c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// srs returns the local part of a forwarder's address without what changes.
// ok is false when it is none. Any of = + - may stand behind the tag.
func srs(local string) (form string, ok bool) {
	if len(local) < 5 || !srsSeparator(local[4]) {
		return "", false
	}
	rest := local[5:]
	switch local[:4] {
	case "srs0":
		original, ok := original(rest)
		return "srs0=#=#=" + original, ok
	case "srs1":
		// The hash, the first forwarder, and its own address without "SRS0".
		_, rest, _ := strings.Cut(rest, "=")
		forwarder, rest, _ := strings.Cut(rest, "=")
		if rest == "" || !srsSeparator(rest[0]) {
			return "", false
		}
		original, ok := original(rest[1:])
		return "srs1=#=" + forwarder + "==#=#=" + original, ok
	}
	return "", false
}

func srsSeparator(c byte) bool { return c == '=' || c == '+' || c == '-' }

// original drops the hash and the time of "hash=time=domain=user".
func original(s string) (string, bool) {
	_, s, _ = strings.Cut(s, "=")
	_, s, _ = strings.Cut(s, "=")
	domain, user, _ := strings.Cut(s, "=")
	return s, domain != "" && user != ""
}

// numbers replaces what looks like the number of a message by #: what stands
// between separators and is a number, a UUID or a token. A local part that
// has nothing but plain numbers ("12345@qq.example") is somebody's name and
// stays.
func numbers(local string) string {
	digits, separated := false, false
	for i := range len(local) {
		c := local[i]
		digits = digits || c >= '0' && c <= '9'
		separated = separated || separator(c)
	}
	if !digits || len(local) < tokenSize && !separated {
		return local
	}
	var b strings.Builder
	changed, named := false, false
	for i := 0; i < len(local); {
		n := uuid(local[i:])
		replace := n > 0
		if !replace {
			for i+n < len(local) && !separator(local[i+n]) {
				n++
			}
			replace = variable(local[i : i+n])
		}
		for j := i; j < i+n && !named; j++ {
			c := local[j]
			named = (c < '0' || c > '9') && c != '#'
		}
		if replace && !changed {
			b.Grow(len(local))
			b.WriteString(local[:i])
			changed = true
		}
		if replace {
			b.WriteByte('#')
		} else if changed {
			b.WriteString(local[i : i+n])
		}
		if i += n; i < len(local) {
			if changed {
				b.WriteByte(local[i])
			}
			i++
		}
	}
	if !changed || !named {
		return local
	}
	return b.String()
}

func separator(c byte) bool { return c == '-' || c == '=' || c == '_' || c == '.' || c == '+' }

// uuid returns the length of the UUID that s begins with (RFC 9562 section 4),
// 0 when there is none or it goes on without a separator.
func uuid(s string) int {
	const form = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
	if len(s) < len(form) || len(s) > len(form) && !separator(s[len(form)]) {
		return 0
	}
	for i := range len(form) {
		c := s[i]
		if hex := c >= '0' && c <= '9' || c >= 'a' && c <= 'f'; hex != (form[i] == 'x') || !hex && c != '-' {
			return 0
		}
	}
	return len(form)
}

// tokenSize is how long a mix of letters and digits must be to be nobody's name.
const tokenSize = 16

// variable reports whether part is a number, at least eight hexadecimal
// digits with a decimal one among them, or a token: letters that go on behind
// digits more than once, which the year behind a name does not.
func variable(part string) bool {
	var digits, hex, letters bool
	turns := 0
	for i := range len(part) {
		switch c := part[i]; {
		case c >= '0' && c <= '9':
			digits = true
			continue
		case c >= 'a' && c <= 'f':
			hex = true
		case c >= 'g' && c <= 'z':
			letters = true
		default:
			return false
		}
		if i > 0 && part[i-1] <= '9' {
			turns++
		}
	}
	switch {
	case !digits:
		return false
	case !letters:
		return !hex || len(part) >= 8
	}
	return turns >= 2 && len(part) >= tokenSize
}
