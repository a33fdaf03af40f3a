// Package page is what pages of the console are made of. A page is data: facts,
// tables, forms, texts. What it shows it gets from the administrator's calls, as
// the command line does, and it lives beside them; package console gives it its
// form. A page holds no HTML, so that nothing a stranger wrote can become any.
package page

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"postern/internal/adminapi"
)

// Role is what a user of the console may do; each may do what those before it
// may.
type Role uint8

// The roles. The zero value is nobody's.
const (
	RoleView    Role = iota + 1 // look at everything but settings and the audit log
	RoleOperate                 // change state, run tests that reach others
	RoleAdmin                   // settings, reload, the audit log
)

var roles = [...]string{RoleView: "view", RoleOperate: "operate", RoleAdmin: "admin"}

// String returns the role as it is written.
func (r Role) String() string {
	if r == 0 || int(r) >= len(roles) {
		return "none"
	}
	return roles[r]
}

// MarshalText implements [encoding.TextMarshaler].
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (r *Role) UnmarshalText(text []byte) error {
	for i, name := range roles {
		if name != "" && name == string(text) {
			*r = Role(i)
			return nil
		}
	}
	return fmt.Errorf("%q is no role: view, operate or admin", text)
}

// Page is one page of the console.
type Page struct {
	// Name is its part of the path: "greylist". Lower case.
	Name  string
	Title string
	// Group is the heading under which the menu has it; "" leaves it out.
	Group string
	// Under names the page in whose place the menu shows it, where the menu does
	// not have it.
	Under string
	// Role is who may see it; 0: [RoleView].
	Role Role
	// Show makes what is seen. It changes nothing.
	Show func(ctx context.Context, a *Ask) (*View, error)
	// Actions are what can be ordered on it.
	Actions []Action
}

// Action is one order.
type Action struct {
	// Name is its part of the path: "forget". Lower case.
	Name string
	// Role is who may give it; 0: [RoleOperate].
	Role Role
	// Trial is set when it changes nothing, as a test of a message: it is not
	// written to the audit log.
	Trial bool
	Do    func(ctx context.Context, a *Ask) (*Done, error)
}

// Ask is what a page is asked for.
type Ask struct {
	// Client makes the administrator's calls.
	Client *adminapi.Client
	// Values are the query, or the form with its uploads as texts.
	Values url.Values
	Now    time.Time
}

// Get returns a value, "" when there is none.
func (a *Ask) Get(name string) string { return a.Values.Get(name) }

// Int returns a value that is a number; none is what stands in its place.
func (a *Ask) Int(name string, none int) (int, error) {
	text := a.Get(name)
	if text == "" {
		return none, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a number", name, text)
	}
	return n, nil
}

// Done is what came of an action.
type Done struct {
	// Text says it in a sentence.
	Text string
	// Before and After are what has changed, for the audit log; empty where there
	// is nothing to tell beside what was ordered.
	Before, After string
	// View is shown in place of the page; nil: the page as it is now.
	View *View
}
