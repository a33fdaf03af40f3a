package app

import (
	"net/http"

	"postern/access"
	"postern/admin"
	"postern/greylist"
	"postern/headercheck"
	"postern/internal/adminapi"
	"postern/provider"
	"postern/rbl"
	"postern/spf"
	"postern/verify"
)

// status is what the parts say of themselves, in the order in which people read
// it.
func (a *App) status(g *generation) []admin.Part {
	out := []admin.Part{
		{Name: "policy", Status: a.door.Status()},
		{Name: "milter", Status: a.milter.Status()},
		{Name: "lookup", Status: a.lookup.Status()},
		{Name: "store", Status: a.parts.store.Status()},
		{Name: "dns", Status: g.resolver.Health()},
		{Name: "tables", Status: g.tables.Status()},
	}
	for _, u := range g.units {
		out = append(out, admin.Part{Name: u.name, Status: u.status()})
	}
	return out
}

// calls are what the parts offer the administrator. A generation that a call
// uses is not stopped meanwhile.
func (a *App) calls() []adminapi.Calls {
	log := a.log.Named("admin")
	all := []adminapi.Calls{
		a.lookup.Calls(),
		access.Calls(func() *access.Check { return a.current.Load().access }, log),
		headercheck.Calls(func() *headercheck.Check { return a.current.Load().headers }),
		provider.Calls(func() *provider.Set { return a.current.Load().provider }, log),
		rbl.Calls(func() *rbl.Check { return a.current.Load().rbl }, log),
		spf.Calls(func() *spf.Check { return a.current.Load().spf }),
		verify.Calls(func() *verify.Check { return a.current.Load().verify }, log),
		greylist.Calls(a.parts.store, log),
	}
	for _, calls := range all {
		for pattern, handler := range calls {
			calls[pattern] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer a.use().users.Add(-1)
				handler.ServeHTTP(w, r)
			})
		}
	}
	return all
}
