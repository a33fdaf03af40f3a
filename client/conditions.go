package client

import "postern/internal/conf"

// condition is one thing that can speak against a client. The order is that in
// which they are reported: of several with the same action the first decides.
type condition uint8

const (
	heloMissing condition = iota
	heloInvalid
	heloNotFull
	heloWrongAddress
	heloOwn
	heloUnresolved
	heloChanges
	reverseMissing
	reverseUnverified
	reverseGeneric
	senderUnresolved
	senderNullMX
	senderPrivateMX
	senderOwn
	conditions
)

// slugs are the conditions in metrics and reports. A reason and a mark is
// "client-" and the slug.
var slugs = [conditions]string{
	"helo-missing", "helo-invalid", "helo-not-full", "helo-wrong-address", "helo-own", "helo-unresolved", "helo-changes",
	"reverse-missing", "reverse-unverified", "reverse-generic",
	"sender-unresolved", "sender-null-mx", "sender-private-mx", "sender-own",
}

// reasons are the conditions in verdicts and as marks, made once.
var reasons = func() (r [conditions]string) {
	for c := range conditions {
		r[c] = "client-" + slugs[c]
	}
	return r
}()

// words are the conditions as strangers read them where several are named.
var words = [conditions]string{
	"no HELO name", "malformed HELO name", "HELO name not a full name", "HELO address not the client's", "HELO name not the client's",
	"HELO name does not exist", "changing HELO names",
	"no reverse name", "reverse name does not lead back", "generic reverse name",
	"sender domain does not exist", "sender domain takes no mail", "sender domain's mail exchangers cannot be reached", "sender domain not the client's",
}

// set is a set of conditions.
type set uint16

// everything is the set of all conditions.
const everything = set(1<<conditions - 1)

func (s set) has(c condition) bool { return s&(1<<c) != 0 }

func of(cs ...condition) (s set) {
	for _, c := range cs {
		s |= 1 << c
	}
	return s
}

// question is something that the DNS is asked about a request.
type question uint8

const (
	askHelo question = iota
	askReverse
	askSender
	questions
)

// questionNames are the questions in configuration, metrics and reports.
var questionNames = [questions]string{"helo", "reverse", "sender"}

// needs are the conditions that cannot be told without a question.
var needs = [questions]set{
	askHelo:    of(heloUnresolved),
	askReverse: of(reverseMissing, reverseUnverified, reverseGeneric),
	askSender:  of(senderUnresolved, senderNullMX, senderPrivateMX),
}

// asks is a set of questions.
type asks uint8

func (a asks) has(q question) bool { return a&(1<<q) != 0 }

// reasonScore is the reason of a refusal by what several marks weigh together,
// reasonUnable that of a question that the DNS did not answer.
const (
	reasonScore  = "client-score"
	reasonUnable = "client-unable"
)

// rules are what the operator wants of all conditions.
type rules struct {
	actions           [conditions]conf.Action
	weights           [conditions]int
	rejectAt, deferAt int
	deferUnable       asks
}

// wanted are the conditions that are looked for.
func (r *rules) wanted() (s set) {
	for c, a := range r.actions {
		if a != conf.Off {
			s |= 1 << c
		}
	}
	return s
}

// ruling is what comes of all that was found.
type ruling struct {
	action conf.Action
	reason string // "" when nothing speaks against the client
	// by is the condition that decides, conditions for none.
	by condition
	// score is what the marks weigh together.
	score int
	// unable is the question for which the client is asked to come back,
	// questions for none.
	unable question
}

// decide is the whole rule: the strongest action among the conditions found,
// or what the marks weigh together, or that the DNS could not be asked.
func decide(r *rules, found set, unable asks) ruling {
	out := ruling{by: conditions, unable: questions}
	for c := range conditions {
		if !found.has(c) {
			continue
		}
		a := r.actions[c]
		if a == conf.Mark {
			out.score += r.weights[c]
		}
		if a > out.action {
			out.action, out.by, out.reason = a, c, reasons[c]
		}
	}
	byScore := conf.Off
	switch {
	case r.rejectAt > 0 && out.score >= r.rejectAt:
		byScore = conf.Reject
	case r.deferAt > 0 && out.score >= r.deferAt:
		byScore = conf.Defer
	}
	if byScore > out.action {
		out.action, out.by, out.reason = byScore, conditions, reasonScore
	}
	if out.action >= conf.Defer {
		return out
	}
	for q := range questions {
		if unable.has(q) && r.deferUnable.has(q) {
			out.action, out.by, out.reason, out.unable = conf.Defer, conditions, reasonUnable, q
			return out
		}
	}
	if out.reason == "" && unable != 0 {
		out.reason = reasonUnable
	}
	return out
}
