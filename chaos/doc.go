// Package chaos breaks what the daemon stands on while mail goes on, and counts
// what clients see of it: requests, wrong answers, 451s, the slowest answer, the
// state that was lost and the time until all is as before.
//
// In `go test` each fault lasts a moment. `make chaos` has each last longer and
// writes the table of docs/reliability.md.
package chaos
