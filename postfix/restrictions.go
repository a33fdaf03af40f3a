package postfix

import "strings"

// Restriction is one word of a restriction list, with its argument.
type Restriction struct {
	Name string // "check_policy_service"
	Arg  string // "unix:postern/policy.sock"
	// Options are those of a policy service in braces: "timeout" = "25s".
	Options map[string]string
	// Text is all of it, as it stands in the list.
	Text string
}

// withArgument are the restrictions that take one, besides those whose names
// begin with "check_" or "reject_rhsbl_" (postconf(5), smtpd_client_restrictions and
// its like).
var withArgument = map[string]bool{
	"reject_rbl_client": true, "permit_dnswl_client": true, "permit_rhswl_client": true, "sleep": true, "reject_rbl": true, "warn_if_reject": false,
}

// Restrictions takes a list apart: commas and white space separate, braces hold
// together.
func Restrictions(list string) []Restriction {
	words := words(list)
	var out []Restriction
	for i := 0; i < len(words); i++ {
		r := Restriction{Name: words[i], Text: words[i]}
		if strings.HasPrefix(r.Name, "check_") || strings.HasPrefix(r.Name, "reject_rhsbl_") || withArgument[r.Name] {
			if i+1 < len(words) {
				i++
				r.Arg = words[i]
				r.Text += " " + words[i]
				r.options()
			}
		}
		out = append(out, r)
	}
	return out
}

// options takes "{ unix:x, timeout=25s }" apart.
func (r *Restriction) options() {
	inner, ok := strings.CutPrefix(r.Arg, "{")
	if !ok {
		return
	}
	r.Options = map[string]string{}
	for i, part := range words(strings.TrimSuffix(inner, "}")) {
		if i == 0 {
			r.Arg = part
			continue
		}
		part = strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(part, "{"), "}"))
		key, value, _ := strings.Cut(part, "=")
		r.Options[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
}

// words parts a list; what is in braces is one word, with its braces.
func words(list string) (out []string) {
	for {
		list = strings.TrimLeft(list, " \t\r\n,")
		switch {
		case list == "":
			return out
		case list[0] == '{':
			end := closing(list)
			if end < 0 {
				return append(out, list)
			}
			out = append(out, list[:end+1])
			list = list[end+1:]
		default:
			word := list
			if i := strings.IndexAny(list, " \t\r\n,"); i >= 0 {
				word = list[:i]
			}
			out = append(out, word)
			list = list[len(word):]
		}
	}
}

// guards are restrictions behind which nothing is relayed for strangers.
var guards = map[string]bool{"reject_unauth_destination": true, "defer_unauth_destination": true, "reject": true, "defer": true, "defer_if_permit": true}

// guarded returns the place of the first guard in a list, -1 for none.
func guarded(list []Restriction) int {
	for i := range list {
		if guards[list[i].Name] {
			return i
		}
	}
	return -1
}
