package known

import (
	"context"
	"strings"

	"postern/internal/conf"
	"postern/policy"
)

// Inspector learns from outgoing mail at the end of a message, when nothing has
// refused it and its header fields tell whether a person wrote it.
type Inspector struct{ c *Check }

var _ policy.BodyInspector = (*Inspector)(nil)

// Inspector returns the check's inspector.
func (c *Check) Inspector() *Inspector { return &Inspector{c} }

// InspectorStep returns how it is run: in the check's mode, and without a say
// in the message when it fails.
func (c *Check) InspectorStep() conf.Step {
	return conf.Step{Mode: c.cfg.Mode, Timeout: c.cfg.Timeout}
}

// Inspects reports whether the inspector has anything to do.
func (c *Check) Inspects() bool { return c.cfg.Mode != policy.Off && c.cfg.learns() }

// Name implements [policy.Inspector].
func (in *Inspector) Name() string { return "known" }

// WantsBody implements [policy.BodyInspector].
func (in *Inspector) WantsBody() bool { return false }

// Inspect implements [policy.Inspector].
func (in *Inspector) Inspect(req *policy.Request, to []policy.Address) policy.Inspection {
	why := in.c.own(req)
	if why == "" {
		return nil
	}
	i := &inspection{c: in.c, why: why}
	for n := range to {
		if l, ok := in.c.lesson(req, to[n]); ok && len(i.lessons) < maxRecipients {
			i.lessons = append(i.lessons, l)
		}
	}
	if len(i.lessons) == 0 {
		return nil
	}
	return i
}

// maxRecipients is how many recipients of one message are learned: a message to
// more is no correspondence with each of them.
const maxRecipients = 100

// inspection is one message of our users.
type inspection struct {
	c         *Check
	why       string
	lessons   []lesson
	automatic string // the field that says so
}

// Header implements [policy.Inspection].
func (i *inspection) Header(f policy.Field) {
	if i.automatic == "" && automatic(f) {
		i.automatic = f.Name
	}
}

// automatic reports whether a field says that no person wrote the message to
// its recipient: automatic answers, reports, mail of lists and bulk mail (RFC
// 3834 section 5, RFC 2919, RFC 2369, RFC 6522). What a program answers a
// stranger must not make him known: he could ask for it.
func automatic(f policy.Field) bool {
	value := strings.ToLower(strings.TrimSpace(f.Value[:min(len(f.Value), 256)]))
	switch strings.ToLower(f.Name) {
	case "auto-submitted":
		word := strings.TrimRight(value[:wordEnd(value)], " \t")
		return word != "no" && word != ""
	case "precedence":
		word := value[:wordEnd(value)]
		return word == "bulk" || word == "list" || word == "junk" || word == "auto_reply"
	case "content-type":
		return strings.HasPrefix(value, "multipart/report")
	case "list-id", "list-unsubscribe", "list-post", "x-autoreply", "x-autorespond", "x-auto-reply", "auto-submitted-by", "x-vacation":
		return true
	}
	return false
}

// wordEnd returns where the first word of a value ends.
func wordEnd(value string) int {
	if i := strings.IndexAny(value, "; \t\r\n("); i >= 0 {
		return i
	}
	return len(value)
}

// EndOfHeaders implements [policy.Inspection].
func (i *inspection) EndOfHeaders() {}

// Body implements [policy.Inspection].
func (i *inspection) Body([]byte) (more bool) { return false }

// End implements [policy.Inspection].
func (i *inspection) End(context.Context) (policy.Judgement, error) {
	if i.automatic != "" {
		i.c.metrics.lost[lostAutomatic].Inc()
		return policy.Judgement{Verdict: policy.Verdict{Reason: reasonAutomatic, Detail: policy.Printable(i.automatic)}}, nil
	}
	for _, l := range i.lessons {
		i.c.note(l)
	}
	return policy.Judgement{Verdict: policy.Verdict{Reason: reasonLearned, Detail: i.why}}, nil
}
