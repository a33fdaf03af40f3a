// Package bench measures the daemon as a whole, beside a floor: a server that
// reads a request and answers at once, over the same kind of socket, in the
// same run. `make bench` runs it and prints ratios; nothing here is a test
// that a slow machine could fail.
package bench
