package page

import (
	"fmt"

	"postern/internal/adminapi"
	"postern/policy"
)

// Trace shows how a decision came about.
func Trace(d *policy.Decision) []Block {
	sum := Facts{Title: "Decision"}
	sum.AddCell("Outcome", Verdict(&d.Verdict))
	sum.Add("By", d.Check)
	if d.Verdict.Action.Refuses() {
		sum.AddCell("Reply", Code(d.Verdict.Reply.String()))
	}
	if d.WouldCheck != "" {
		sum.AddCell("In shadow", Cell{Text: d.WouldCheck + " would say: " + d.Would.Text(), Tone: Warn})
	}
	sum.Add("Reference", d.Reference)
	sum.Add("Chain", d.Chain)
	sum.Add("Took", adminapi.Tidy(d.Took).String())
	if d.Degraded {
		sum.AddCell("Degraded", Cell{Text: "something could not be asked, see the steps", Tone: Warn})
	}
	for _, h := range d.Headers {
		sum.AddCell("Adds", Code(h.Name+": "+h.Value))
	}
	steps := Table{Title: "Steps", Columns: []string{"Step", "Outcome", "What it says", "Took"}, Empty: "No check was asked."}
	for i := range d.Steps {
		s := &d.Steps[i]
		took := adminapi.Tidy(s.Took).String()
		if s.Outcome == policy.Skipped || s.Outcome == policy.Hinted {
			took = ""
		}
		state, text := stepState(s)
		text.Note = s.Verdict.Detail
		steps.Add(Cell{Text: fmt.Sprintf("%d. %s", i+1, s.Check)}, state, text, Cell{Text: took, Number: true})
		for _, n := range s.Notes {
			took := ""
			if n.Took > 0 {
				took = adminapi.Tidy(n.Took).String()
			}
			steps.Add(Cell{}, Cell{Text: n.Source, Tone: Quiet}, Cell{Text: n.What, Code: true, Note: n.Value}, Cell{Text: took, Number: true})
		}
	}
	return []Block{sum, steps}
}

// Verdict is a cell of what a verdict means.
func Verdict(v *policy.Verdict) Cell {
	switch {
	case v.Action == policy.Continue:
		return State(Good, "accepted")
	case v.Action == policy.Reject:
		return Cell{Text: "refused", Tone: Bad, Badge: true, Note: v.Reason}
	case v.Action.Refuses():
		return Cell{Text: "deferred", Tone: Warn, Badge: true, Note: v.Reason}
	case v.Action == policy.Allow || v.Action == policy.Permit:
		return Cell{Text: v.Action.String(), Tone: Good, Badge: true, Note: v.Reason}
	}
	return Cell{Text: v.Action.String(), Tone: Warn, Badge: true, Note: v.Reason}
}

func stepState(s *policy.Step) (state, text Cell) {
	says := s.Verdict.Text()
	tone := Plain
	switch {
	case s.Verdict.Action == policy.Continue:
	case s.Verdict.Action == policy.Reject:
		tone = Bad
	case s.Verdict.Action == policy.Allow || s.Verdict.Action == policy.Permit:
		tone = Good
	default:
		tone = Warn
	}
	switch s.Outcome {
	case policy.Skipped:
		return State(Quiet, "not asked"), Cell{Text: s.Error, Tone: Quiet}
	case policy.Failed, policy.TimedOut, policy.Panicked:
		text := s.Error
		if s.Verdict.Action != policy.Continue {
			text += "; on_error: " + says
		}
		return State(Bad, s.Outcome.String()), T("%s", text)
	case policy.Shadowed:
		return State(Warn, "in shadow"), T("%s", says)
	case policy.Hinted:
		return State(tone, "known already"), T("%s", says)
	case policy.Ran:
	}
	return State(tone, "asked"), T("%s", says)
}
