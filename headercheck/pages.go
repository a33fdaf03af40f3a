package headercheck

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"postern/internal/page"
	"postern/policy"
)

// Pages are what the console shows of the rules.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "header-rules", Title: "Header rules", Group: "Checks", Show: showRules, Actions: []page.Action{
		{Name: "test", Role: page.RoleView, Trial: true, Do: testMessage},
	}}}
}

func showRules(ctx context.Context, a *page.Ask) (*page.View, error) {
	const shown = 500
	v := &page.View{Intro: "Rules on the content of messages, and what they have hit since counting began."}
	out, err := Admin{a.Client}.Rules(ctx)
	find, never := strings.ToLower(strings.TrimSpace(a.Get("find"))), a.Get("never")
	v.Add(messageForm(), page.Form{Fields: []page.Field{
		{Name: "find", Label: "Text", Value: a.Get("find"), Hint: "In the pattern, the action or the place."},
		{Name: "never", Label: "Only those that never hit", Value: never, Type: "checkbox"},
	}})
	t := page.Table{Title: "Rules", Columns: []string{"Pattern", "Action", "Hits", "Last", "Kind", "Place"}, Empty: "There is no rule: [[headers.checks]] and [[headers.rules]]."}
	n := 0
	for _, r := range out.Rules {
		if never == "true" && r.Hits > 0 || find != "" && !strings.Contains(strings.ToLower(r.Pattern+"\n"+r.Result+"\n"+r.Rule+"\n"+r.Table), find) {
			continue
		}
		if n++; n > shown {
			continue
		}
		action := page.Code(r.Result)
		if r.Shadow {
			action.Note = "in shadow: it only counts"
		}
		t.Add(page.Code(r.Pattern), action, page.N(r.Hits), page.At(r.Last), page.T("%v", r.Kind), page.Code(r.Rule))
	}
	if n > shown {
		t.More = fmt.Sprintf("%d more are left out.", n-shown)
	}
	v.Add(t)
	if len(out.FilterLines) > 0 {
		v.Add(page.Text{Title: "For milter_header_checks of Postfix", Note: "Postfix carries out FILTER by these lines.", Text: strings.Join(out.FilterLines, "\n"), Copy: true})
	}
	return v, err
}

func messageForm() page.Form {
	return page.Form{Title: "Try a message", Note: "Nothing is sent, counted or changed.", Action: "test", Submit: "Run the rules over it", Closed: true, Fields: []page.Field{
		{Name: "message", Label: "Message", Type: "file", Hint: "A file as mail programs save it (.eml)."},
		{Name: "text", Label: "Or its text", Type: "textarea"},
		{Name: "from", Label: "Envelope sender"}, {Name: "to", Label: "Recipients", Hint: "Several with spaces between."}, {Name: "client", Label: "Client", Placeholder: "192.0.2.7"},
		{Name: "results", Label: "What authentication found", Placeholder: "dmarc=fail dkim=pass", Hint: "For rules with a condition."},
	}}
}

func testMessage(ctx context.Context, a *page.Ask) (*page.Done, error) {
	text := a.Get("message")
	if text == "" {
		text = a.Get("text")
	}
	if strings.TrimSpace(text) == "" {
		return nil, errors.New("there is no message: choose a file, or write its text")
	}
	rep, err := Admin{a.Client}.Test(ctx, &Question{
		Message: []byte(text), Client: strings.TrimSpace(a.Get("client")), From: strings.TrimSpace(a.Get("from")), To: strings.Fields(a.Get("to")), Results: strings.TrimSpace(a.Get("results")),
	})
	if err != nil {
		return nil, err
	}
	v := &page.View{Title: "What the rules make of the message"}
	f := page.Facts{Title: "Outcome"}
	f.AddCell("Verdict", page.Verdict(&rep.Judgement.Verdict))
	if rep.Judgement.Verdict.Action.Refuses() {
		f.AddCell("Reply", page.Code(rep.Judgement.Verdict.Reply.String()))
	}
	for _, e := range rep.Judgement.Edits {
		switch e.Kind {
		case policy.AddRecipient, policy.ReplaceRecipient:
			f.AddCell("Changes", page.Code(fmt.Sprint(e.Kind, " ", e.Arg)))
		case policy.InsertField, policy.ReplaceField, policy.DeleteField, policy.ReplaceBody:
		}
	}
	v.Add(f)
	t := page.Table{Title: "Lines", Columns: []string{"Line", "Kind", "Rule", "Action"}, Empty: "No line was looked up."}
	for _, l := range rep.Lines {
		line := page.Code(strings.ReplaceAll(l.Text, "\n", " "))
		if len(l.Matches) == 0 {
			t.Add(line, page.T("%v", l.Kind), page.Cell{Text: "none matches", Tone: page.Quiet}, page.Cell{})
		}
		for i := range l.Matches {
			m := &l.Matches[i]
			rule := page.Code(m.Pattern)
			rule.Note = m.Rule
			action := page.State(page.Warn, strings.ToUpper(m.Action))
			action.Note = m.Arg
			if m.Shadow {
				action.Note = strings.TrimSpace("in shadow " + m.Arg)
			}
			t.Add(line, page.T("%v", l.Kind), rule, action)
			line = page.Cell{}
		}
	}
	v.Add(t)
	if rep.Message != nil {
		const most = 64 << 10
		left := strings.ReplaceAll(string(rep.Message), "\r\n", "\n")
		note := ""
		if len(left) > most {
			left, note = strings.ToValidUTF8(left[:most], ""), "Its beginning."
		}
		v.Add(page.Text{Title: "As it would leave", Note: note, Text: left})
	}
	v.Add(page.Links{{Text: "Back to the rules", Href: page.Link("header-rules")}})
	return &page.Done{View: v}, nil
}
