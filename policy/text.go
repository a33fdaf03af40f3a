package policy

import "strings"

// Text says a verdict in a line, as traces show it.
func (v Verdict) Text() string {
	text := v.Action.String()
	if v.Action == Continue {
		text = "no objection"
	}
	if v.Reason != "" {
		text += " (" + v.Reason + ")"
	}
	switch {
	case v.Action.Refuses():
		text += ": " + v.Reply.String()
	case v.Action == Allow:
		text += " past " + strings.Join(v.Skip, ", ")
	case v.Arg != "":
		text += " to " + v.Arg
	}
	return text
}
