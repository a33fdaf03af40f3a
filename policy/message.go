package policy

import "context"

// Field is one header field as a door received it. Value is all that follows
// the colon, leading white space included; folded lines are joined by LF,
// without CR.
type Field struct {
	Name, Value string
}

// EditKind says what an [Edit] does.
type EditKind uint8

// The edits.
const (
	InsertField      EditKind = iota // put Name and Value before field At
	ReplaceField                     // put Name and Value in the place of field At
	DeleteField                      // take field At out
	AddRecipient                     // deliver to Arg too, without notifications
	ReplaceRecipient                 // deliver to Arg only
	ReplaceBody                      // Body in the place of the whole body
	editKindCount
)

var editKindNames = [editKindCount]string{
	"insert-field", "replace-field", "delete-field", "add-recipient", "replace-recipient", "replace-body",
}

// String returns the name used in logs and reports.
func (k EditKind) String() string {
	if k < editKindCount {
		return editKindNames[k]
	}
	return "unknown"
}

// Edit is one change to a message. At counts the fields of the message as it
// was received, from 0, whatever other edits do; the number of fields stands
// for "after the last". Several edits may name the same field: insertions come
// before it in their order.
type Edit struct {
	Kind        EditKind
	At          int
	Name, Value string // Value as in Field
	Arg         string // an address without angle brackets
	Body        []byte // with CRLF line ends
}

// Judgement is what an [Inspection] makes of a whole message. Edits count only
// when the message is accepted.
type Judgement struct {
	Verdict Verdict
	Edits   []Edit
}

// Inspector looks at the content of messages. It is safe for concurrent use.
type Inspector interface {
	// Name is its name in configuration, logs and metrics: "headers".
	Name() string
	// Inspect begins one message from the envelope: req at StageData, and its
	// accepted recipients. Both stay unchanged until End. A nil Inspection
	// has no interest in the message.
	Inspect(req *Request, to []Address) Inspection
}

// BodyInspector is an [Inspector] that can tell whether it ever looks at
// bodies; one that is not a BodyInspector is taken to do so. When no inspector
// does, bodies need not be sent to us at all.
type BodyInspector interface {
	Inspector
	// WantsBody is constant for one value.
	WantsBody() bool
}

// Inspection looks at one message. Its methods are called in this order, by
// one goroutine at a time: Header for each field, EndOfHeaders, Body for each
// chunk, End. A message that is given up gets no End; an Inspection that holds
// something until then has a method Abandon(), which is called instead.
type Inspection interface {
	Header(f Field)
	EndOfHeaders()
	// Body takes the next bytes of the body, CRLF line ends, cut anywhere. It
	// keeps nothing of p. It returns false when it needs no more of them.
	Body(p []byte) (more bool)
	// End returns the judgement. An error means "could not decide".
	End(ctx context.Context) (Judgement, error)
}

// Finisher is an [Inspection] that comes when all others have judged: it signs
// or seals what they leave. One door, the milter, and the inspectors' order are
// what it depends on.
type Finisher interface {
	Inspection
	// Finish is called once, after the End of all inspections, when the message is
	// accepted and this one's End gave no error, in the order of the inspectors.
	// edits are all that count so far, those of finishers before it included, and
	// are not to be changed; [Apply] and [Replaced] say what comes of them. The
	// fields that verdicts put on top of the message are among them, as
	// insertions before field 0.
	//
	// Its own edits are appended. Of its verdict only Reason and Detail count,
	// which take the place of those of End: it is too late to refuse. An error
	// means "could not decide", as that of End, and shares its time limit.
	Finish(ctx context.Context, edits []Edit) (Judgement, error)
}
