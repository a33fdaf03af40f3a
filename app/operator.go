package app

import (
	"net/http"
	"sync"
	"time"

	"postern/admin"
	"postern/internal/adminapi"
	"postern/store"
)

// status is what the parts say of themselves, in the order in which people read
// it.
func (a *App) status(g *generation) []admin.Part {
	out := []admin.Part{
		{Name: "policy", Status: a.door.Status()},
		{Name: "milter", Status: a.milter.Status()},
		{Name: "lookup", Status: a.lookup.Status()},
		{Name: "store", Status: a.parts.store.Status()},
		{Name: "journal", Status: a.journal.Status()},
		{Name: "dns", Status: g.resolver.Health()},
		{Name: "tables", Status: g.tables.Status()},
	}
	for _, u := range g.units {
		out = append(out, admin.Part{Name: u.name, Status: u.status()})
	}
	return out
}

// calls are what the parts offer the administrator. A call of a check goes to
// the check that is in force then.
func (a *App) calls() []adminapi.Calls {
	all := []adminapi.Calls{a.lookup.Calls(), a.journal.Calls(), store.Calls(a.parts.store, a.rule, a.log)}
	for i, u := range a.current.Load().units {
		calls := make(adminapi.Calls, len(u.calls))
		for pattern := range u.calls {
			calls[pattern] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				g, release := a.lend()
				defer release()
				g.units[i].calls[pattern].ServeHTTP(w, r) // every generation has the same checks
			})
		}
		all = append(all, calls)
	}
	return all
}

// lentFor is how long a call keeps its generation running after a reload, more
// than an answer takes to make. A listing that nobody goes on reading must not
// keep the old checks at work beside the new ones.
const lentFor = 3 * time.Minute

// lend returns the current generation, which is not stopped until release is
// called or lentFor has passed.
func (a *App) lend() (g *generation, release func()) {
	g = a.use()
	give := sync.OnceFunc(func() { g.users.Add(-1) })
	timer := time.AfterFunc(lentFor, give)
	return g, func() {
		timer.Stop()
		give()
	}
}
