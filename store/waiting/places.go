package waiting

// none is no place.
const none = -1

// link is what a place holds to be in a list.
type link struct{ next, prev int32 }

func (l *link) links() *link { return l }

// linked is a place that can be in a list, one at a time.
type linked[T any] interface {
	*T
	links() *link
}

// places are numbered places for things, in blocks, so that more of them move
// nothing.
type places[T any, P linked[T]] struct {
	blocks []*[block]T
	n      int32
	free   int32 // the first that was given back
}

const block = 1024

func noPlaces[T any, P linked[T]]() places[T, P] { return places[T, P]{free: none} }

func (ps *places[T, P]) at(i int32) *T { return &ps.blocks[i/block][i%block] }

func (ps *places[T, P]) link(i int32) *link { return P(ps.at(i)).links() }

// take returns a place that is free.
func (ps *places[T, P]) take() int32 {
	if i := ps.free; i != none {
		ps.free = ps.link(i).next
		return i
	}
	if int(ps.n) == len(ps.blocks)*block {
		ps.blocks = append(ps.blocks, new([block]T))
	}
	ps.n++
	return ps.n - 1
}

// give gives a place back, empty.
func (ps *places[T, P]) give(i int32) {
	*ps.at(i) = *new(T)
	ps.link(i).next = ps.free
	ps.free = i
}

// list is a list of places.
type list struct {
	head, tail int32
	n          int32
}

var emptyList = list{none, none, 0}

func (ps *places[T, P]) push(l *list, i int32) {
	*ps.link(i) = link{none, l.tail}
	if l.tail != none {
		ps.link(l.tail).next = i
	} else {
		l.head = i
	}
	l.tail = i
	l.n++
}

func (ps *places[T, P]) remove(l *list, i int32) {
	at := ps.link(i)
	if at.prev != none {
		ps.link(at.prev).next = at.next
	} else {
		l.head = at.next
	}
	if at.next != none {
		ps.link(at.next).prev = at.prev
	} else {
		l.tail = at.prev
	}
	*at = link{none, none}
	l.n--
}
