// Package admintest serves the administrator's calls of one part of the daemon,
// for that part's own tests of both ends.
package admintest

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"postern/internal/adminapi"
)

// Serve answers calls until the test ends, and returns a client for them.
func Serve(t testing.TB, calls adminapi.Calls) *adminapi.Client {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, handler := range calls {
		mux.Handle(pattern, handler)
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return adminapi.NewClient("tcp:"+s.Listener.Addr().String(), "")
}
