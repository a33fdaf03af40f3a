package spf

import (
	"net/netip"
	"strings"

	"postern/internal/mailaddr"
)

const (
	// maxReceived is the most octets of a Received field that is read.
	maxReceived = 4096
	// maxHops is the most Received fields that are looked at.
	maxHops = 16
)

// Origin returns the client that handed a message to the first relay of ours,
// and the name that it gave in HELO, from the values of the Received fields,
// the newest first. trusted tells our relays: the newest field is written by
// the one that has just handed the message to us; when that had it from
// another of them, the next field is that one's, and so on. What stands below
// is the stranger's and is not read. ok is false when a field cannot be
// understood in one way only, when there are none, or when the client is none
// of the public network: then nothing is known.
func Origin(received []string, trusted func(netip.Addr) bool) (client netip.Addr, helo string, ok bool) {
	for _, value := range received[:min(len(received), maxHops)] {
		client, helo, ok = parseReceived(value)
		switch {
		case !ok:
			return netip.Addr{}, "", false
		case trusted(client):
			continue
		case !client.IsGlobalUnicast() || client.IsPrivate():
			return netip.Addr{}, "", false
		}
		return client, helo, true
	}
	return netip.Addr{}, "", false
}

// parseReceived reads who a Received field says the message is from. Client
// and HELO name stand in it in the ways of several MTAs:
//
//	from HELO (NAME [ADDRESS])                    Postfix, sendmail
//	from HELO (NAME [ADDRESS] (may be forged))    sendmail
//	from NAME ([ADDRESS] helo=HELO)               Exim
//	from [ADDRESS] (helo=HELO)                    Exim
//	from HELO (ADDRESS)                           Exchange
//
// HELO is the stranger's. No form is taken in which it could pass for the
// address, and nothing is taken from a field that has none of these forms.
func parseReceived(value string) (client netip.Addr, helo string, ok bool) {
	if len(value) > maxReceived {
		return client, "", false
	}
	word, rest := nextWord(value)
	if !strings.EqualFold(word, "from") {
		return client, "", false
	}
	word, rest = nextWord(rest)
	comment, ok := firstComment(rest)
	if !ok || word == "" || strings.ContainsAny(word, "()") || odd(word) || odd(comment) {
		return client, "", false
	}
	helo = word
	f := strings.Fields(comment)
	switch {
	case len(f) == 0:
		return client, "", false
	case strings.HasPrefix(f[0], "helo=") && plainWords(f): // Exim without a name
		client, helo = literal(word), f[0][len("helo="):]
	case f[0][0] == '[' && plainWords(f): // Exim with a name; sendmail without one
		client = literal(f[0])
		for _, w := range f[1:] {
			if h, is := strings.CutPrefix(w, "helo="); is {
				helo = h
			}
		}
	case len(f) == 1: // Exchange
		client = mailaddr.IP(f[0])
	case (len(f) == 2 || strings.Join(f[2:], " ") == "(may be forged)") && !strings.ContainsAny(f[0], "[]=()"):
		client = literal(f[1])
	}
	return client, mailaddr.Domain(helo), client.IsValid()
}

// odd reports whether s holds what no MTA writes there: control characters but
// those of folding, escapes, quotes.
func odd(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f || r == '\\' || r == '"'
	})
}

// plainWords reports whether all but the first of f are "name=value", as Exim
// writes them, each name once.
func plainWords(f []string) bool {
	seen := ""
	for _, w := range f[1:] {
		name, _, is := strings.Cut(w, "=")
		if !is || name != "helo" && name != "ident" || strings.Contains(seen, name) {
			return false
		}
		seen += name
	}
	return true
}

// literal reads "[ADDRESS]", perhaps with ":PORT" behind.
func literal(s string) netip.Addr {
	inner, ok := strings.CutPrefix(s, "[")
	if !ok {
		return netip.Addr{}
	}
	inner, port, ok := strings.Cut(inner, "]")
	if !ok || port != "" && (port[0] != ':' || len(port) > 6 || strings.Trim(port[1:], "0123456789") != "") {
		return netip.Addr{}
	}
	return mailaddr.IP(inner)
}

// nextWord parts s at the first white space.
func nextWord(s string) (word, rest string) {
	s = strings.TrimLeft(s, " \t\r\n")
	if i := strings.IndexAny(s, " \t\r\n"); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// firstComment returns the text of the comment that s begins with.
func firstComment(s string) (text string, ok bool) {
	s = strings.TrimLeft(s, " \t\r\n")
	if s == "" || s[0] != '(' {
		return "", false
	}
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return s[1:i], true
			}
		}
	}
	return "", false
}
