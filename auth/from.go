package auth

import (
	"slices"

	"postern/internal/mailaddr"
)

// errFrom is why the author of a message cannot be told.
var errFrom = mailaddr.ErrAuthors

// maxAuthors is how many domains of a From field are looked at, and
// maxAddresses how many addresses.
const (
	maxAuthors   = 20
	maxAddresses = 1000
)

// fromDomains returns the domains of the addresses in a From field, each once,
// in the compared form.
func fromDomains(value string) ([]string, error) {
	authors, err := mailaddr.Authors(value, maxAddresses)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range authors {
		if slices.Contains(out, a.Domain) {
			continue
		}
		if len(out) == maxAuthors {
			return nil, errFrom
		}
		out = append(out, a.Domain)
	}
	return out, nil
}

// properDomain reports whether a domain in the compared form is one that can
// be in the DNS. Anything may stand in d= of a signature and in From: nothing
// else than a domain is ever aligned with one.
func properDomain(d string) bool { return mailaddr.IsDomain(d) }
