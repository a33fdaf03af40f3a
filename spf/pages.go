package spf

import (
	"context"
	"strings"

	"postern/internal/page"
)

// Pages are what the console shows of SPF.
func (*Check) Pages() []page.Page {
	return []page.Page{{Name: "spf", Title: "SPF test", Group: "Authentication", Show: showTest}}
}

func toneOf(result string) page.Tone {
	switch result {
	case "pass":
		return page.Good
	case "fail", "permerror", "reject":
		return page.Bad
	case "none", "neutral", "off", "":
		return page.Quiet
	}
	return page.Warn
}

func showTest(ctx context.Context, a *page.Ask) (*page.View, error) {
	v := &page.View{Intro: "Both identities of a client evaluated anew, query by query, and what would come of it."}
	q := Question{IP: strings.TrimSpace(a.Get("ip")), Sender: strings.TrimSpace(a.Get("sender")), Helo: strings.TrimSpace(a.Get("helo"))}
	v.Add(page.Form{Submit: "Evaluate", Fields: []page.Field{
		{Name: "ip", Label: "Client", Value: q.IP, Required: true, Placeholder: "192.0.2.7"},
		{Name: "sender", Label: "Sender", Value: q.Sender, Placeholder: "a@example.org", Hint: "Left out: the null sender."}, {Name: "helo", Label: "HELO", Value: q.Helo},
	}})
	if q.IP == "" {
		return v, nil
	}
	r, err := Admin{a.Client}.Test(ctx, q)
	if err != nil {
		return v, err
	}
	f := page.Facts{Title: "What would come of it"}
	action := page.State(toneOf(r.Action), r.Action)
	action.Note = r.Reason
	f.AddCell("Action", action)
	if r.Reply.Code != 0 {
		f.AddCell("Reply", page.Code(r.Reply.String()))
	}
	f.Add("Not asked about", r.Exempt)
	f.Add("Allowed by", r.AllowedBy)
	f.Add("Marks", strings.Join(r.Marks, ", "))
	if r.Header != "" {
		f.AddCell("Header", page.Code(r.Header))
	}
	v.Add(f)
	for i := range r.Identities {
		id := &r.Identities[i]
		one := page.Facts{Title: id.Identity}
		if id.Outcome != nil {
			one.AddCell("Result", page.State(toneOf(id.Result), id.Result))
			one.AddCell("Domain", page.Code(id.Domain))
			if id.TooWide {
				one.AddCell("Too wide", page.Cell{Text: "the record lets more clients pass than the configuration allows: it does not count", Tone: page.Warn})
			}
			one.Add("Problem", id.Problem)
		}
		if len(id.Match) > 0 {
			one.AddCell("Decided by", page.Code(strings.Join(id.Match, " › ")))
		}
		t := page.Table{Columns: []string{"Term", "Query", "Answer"}, Empty: "Nothing was looked up."}
		for _, s := range id.Steps {
			answer := page.Code(s.Answer)
			if s.Cached {
				answer.Note = "from memory"
			}
			t.Add(page.Code(strings.Repeat("· ", s.Depth)+s.Term), page.Code(s.Query), answer)
		}
		v.Add(one, t)
	}
	return v, nil
}
