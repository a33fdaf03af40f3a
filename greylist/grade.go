package greylist

import (
	"slices"
	"strings"

	"postern/policy"
)

// kind is a kind of suspicion: marks of one kind have one cause, and count
// once.
type kind uint8

const (
	kindName   kind = iota // the client's reverse name: none, not verified, generic
	kindHelo               // its HELO name
	kindSender             // the sender's domain
	kindSPF                // no pass where the sender's domain publishes SPF
	kindList               // on DNS lists, below rejection
	kindOther              // what further checks mark
	kinds
)

var kindNames = [kinds]string{"name", "helo", "sender", "spf", "list", "other"}

// kindSet is a set of kinds.
type kindSet uint8

func (s kindSet) has(k kind) bool { return s&(1<<k) != 0 }

// count returns how many kinds are in the set, as far as that matters.
func (s kindSet) several() bool { return s&(s-1) != 0 }

// kindsOf returns the set of the named kinds, and the first name that is none.
func kindsOf(names []string) (s kindSet, unknown int) {
	unknown = -1
	for i, name := range names {
		k := slices.Index(kindNames[:], name)
		if k < 0 {
			if unknown < 0 {
				unknown = i
			}
			continue
		}
		s |= 1 << k
	}
	return s, unknown
}

// kindOf returns the kind of a mark; ok is false when it speaks against nobody:
// SPF that could not be asked, and for the HELO name anything but a plain fail
// while there is a sender whose domain was asked.
func kindOf(mark string, spf *policy.SPF) (k kind, ok bool) {
	check, what, _ := strings.Cut(mark, "-")
	switch check {
	case "client":
		switch about, _, _ := strings.Cut(what, "-"); about {
		case "reverse":
			return kindName, true
		case "helo":
			return kindHelo, true
		case "sender":
			return kindSender, true
		}
	case "spf":
		result, ofHelo := strings.CutPrefix(what, "helo-")
		switch {
		case result == "temperror":
			return 0, false
		case !ofHelo || spf.Identity == "helo":
			return kindSPF, true
		}
		return kindHelo, result == "fail"
	case "rbl":
		return kindList, true
	}
	return kindOther, true
}

// suspicionsOf returns the kinds of the marks of a request that count.
func suspicionsOf(facts *policy.Facts, counted kindSet) (s kindSet) {
	for _, mark := range facts.Marks {
		if k, ok := kindOf(mark, &facts.SPF); ok {
			s |= 1 << k
		}
	}
	return s & counted
}

// listed reports whether DNS lists say more than one mark: two of them know
// the client, or they would refuse it.
func listed(facts *policy.Facts) bool {
	if facts.ListsRefuse {
		return true
	}
	first := ""
	for i := range facts.Listings {
		switch l := &facts.Listings[i]; {
		case l.Weight <= 0 || l.List == first:
		case first != "":
			return true
		default:
			first = l.List
		}
	}
	return false
}

// class is how long a first contact waits.
type class uint8

const (
	classNone  class = iota // passes at once
	classShort              // delay
	classLong               // long_delay
	classOwn                // the delay of an exception
	classes
)

var classNames = [classes]string{"none", "delay", "long_delay", "exception"}

// grade is how long a contact waits, and what makes it.
type grade struct {
	class class
	kinds kindSet // the suspicions that count
	lists bool    // several lists have it
	burst bool
	// forwarded is set when no SPF pass was not counted: it is the only
	// suspicion, and somebody in the client's network has credit.
	forwarded bool
}

// gradeOf is the whole rule of when = "graded", but for bursts.
func gradeOf(s kindSet, lists bool) class {
	switch {
	case s.several() || lists:
		return classLong
	case s != 0:
		return classShort
	}
	return classNone
}

// maxWords is how many marks are named at most.
const maxWords = 8

// words names what made a grade, "" when nothing did.
func (g *grade) words(facts *policy.Facts) string {
	if g.kinds == 0 && !g.burst {
		return ""
	}
	words := make([]string, 0, maxWords)
	for _, mark := range facts.Marks {
		if k, ok := kindOf(mark, &facts.SPF); ok && g.kinds.has(k) && len(words) < maxWords-1 {
			words = append(words, mark)
		}
	}
	if g.burst {
		words = append(words, "burst")
	}
	return strings.Join(words, ", ")
}
