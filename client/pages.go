package client

import (
	"context"
	"fmt"
	"strings"

	"postern/internal/adminapi"
	"postern/internal/conf"
	"postern/internal/page"
)

// Pages are what the console shows of the check.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "client", Title: "Client test", Group: "Checks", Show: showTest}}
}

func showTest(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Every condition of HELO name, reverse name and sender's domain for a client, those that are off as well, with the DNS as it is now."}
	q := Question{IP: strings.TrimSpace(a.Get("ip")), Helo: strings.TrimSpace(a.Get("helo")), Name: strings.TrimSpace(a.Get("name"))}
	sender := strings.TrimSpace(a.Get("sender"))
	v.Add(page.Form{Submit: "Judge", Fields: []page.Field{
		{Name: "ip", Label: "Client", Value: q.IP, Required: true, Placeholder: "192.0.2.7"}, {Name: "helo", Label: "HELO", Value: q.Helo},
		{Name: "sender", Label: "Sender", Value: sender, Hint: "<> is the null sender; left out: not given yet."}, {Name: "name", Label: "Verified name", Value: q.Name, Hint: "Left out: looked up."},
	}})
	if q.IP == "" {
		return v, nil
	}
	if sender != "" {
		q.Sender = &sender
	}
	r, err := Admin{a.Client}.Test(ctx, &q)
	if err != nil {
		return v, err
	}
	f := page.Facts{Title: "What would come of it"}
	action := page.State(page.Good, r.Action.String())
	switch r.Action {
	case conf.Reject:
		action.Tone = page.Bad
	case conf.Defer, conf.Mark:
		action.Tone = page.Warn
	case conf.Off:
		action = page.State(page.Good, "no objection")
	}
	action.Note = r.Reason
	f.AddCell("Action", action)
	if r.Reply.Code != 0 {
		f.AddCell("Reply", page.Code(r.Reply.String()))
	}
	f.Add("Score of the marks", fmt.Sprint(r.Score))
	f.Add("Exempt", r.Exempt)
	t := page.Table{Title: "Conditions", Columns: []string{"Condition", "Holds", "Action", "Weight"}}
	for _, c := range r.Conditions {
		state := page.State(page.Quiet, string(c.Result))
		switch c.Result {
		case Found:
			state.Tone = page.Bad
		case Unable:
			state.Tone = page.Warn
		case NotFound, NotGiven:
		}
		state.Note = c.Detail
		t.Add(page.Code(c.Condition), state, page.T("%s", c.Action.String()), page.N(c.Weight))
	}
	d := page.Table{Title: "What the DNS said", Columns: []string{"Question", "Answer", "Took"}, Empty: "It was not asked."}
	for _, one := range r.Answers {
		took := page.Cell{Text: adminapi.Tidy(one.Took).String(), Number: true}
		if one.Cached {
			took.Note = "from memory"
		}
		d.Add(page.Code(one.What), page.Code(one.Says), took)
	}
	v.Add(f, t, d)
	return v, nil
}
