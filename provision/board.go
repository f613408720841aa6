package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"recast/bmc"
	"recast/inventory"
)

// Board is which board a BMC says that it is on, in its own words: some tell
// another UUID or serial number than the system's SMBIOS.
type Board struct {
	UUID   string `json:"uuid,omitempty"`
	Serial string `json:"serial,omitempty"`
	BMC    string `json:"bmc,omitempty"` // the service's UUID
	// URL is the bmc.url behind which it was seen last; "" in old records.
	URL string `json:"url,omitempty"`
	// By has said at an enrolment that it is the machine's; "" nobody.
	By string    `json:"by,omitempty"`
	At time.Time `json:"at,omitzero"`
}

func boardOf(id bmc.Identity, url string) Board {
	return Board{UUID: id.UUID, Serial: id.Serial, BMC: id.BMC.UUID, URL: url}.usable()
}

// usable leaves out a serial that many boards have, since it names none of them.
func (b Board) usable() Board {
	if !inventory.UsableSerial(b.Serial) {
		b.Serial = ""
	}
	return b
}

// named tells whether anything in it names the board.
func (b Board) named() bool { return b.UUID != "" || b.Serial != "" }

func (b Board) text() string {
	switch {
	case b.Serial == "":
		return "UUID " + b.UUID
	case b.UUID == "":
		return "serial " + b.Serial
	}
	return "serial " + b.Serial + ", UUID " + b.UUID
}

// differ says in what two answers differ, as far as both tell. The BMC's own UUID, which
// a factory reset may change, counts only where nothing else can be compared.
func (b Board) differ(now Board) (serial, uuid, service bool) {
	serial = b.Serial != "" && now.Serial != "" && b.Serial != now.Serial
	uuid = b.UUID != "" && now.UUID != "" && !sameUUID(b.UUID, now.UUID)
	service = b.BMC != "" && now.BMC != "" && b.BMC != now.BMC && !b.shares(now)
	return serial, uuid, service
}

// other is differ in words, "" where they do not.
func (b Board) other(now Board) string {
	var diff []string
	serial, uuid, service := b.differ(now)
	for _, f := range []struct {
		is            bool
		name, was, to string
	}{{serial, "serial", b.Serial, now.Serial}, {uuid, "UUID", b.UUID, now.UUID}, {service, "BMC's UUID", b.BMC, now.BMC}} {
		if f.is {
			diff = append(diff, fmt.Sprintf("%s %s before, %s now", f.name, f.was, f.to))
		}
	}
	return strings.Join(diff, ", ")
}

// shares tells whether two answers agree in anything that names the board.
func (b Board) shares(now Board) bool {
	return b.UUID != "" && sameUUID(b.UUID, now.UUID) || b.Serial != "" && b.Serial == now.Serial
}

// sameUUID compares two, in either byte order.
func sameUUID(a, b string) bool {
	return strings.EqualFold(a, b) || strings.EqualFold(swappedUUID(a), b)
}

// boardOwner is a machine that has said the UUID of itself which a BMC says.
type boardOwner struct {
	Machine string // "" none
	Since   time.Time
}

// boardQuestion is all that tells whether the BMC behind a machine's bmc.url is its own.
type boardQuestion struct {
	Known    *Board // on record; nil none
	Now      Board  // as the BMC says
	Declared Board  // as the machine is declared
	Agent    Board  // as the machine itself, its ramdisk, said last
	Owner    boardOwner
}

// wrong says why the BMC is not taken as the machine's, "" where nothing speaks against it.
// Vendors put other numbers in SMBIOS than a BMC tells, so that what a BMC said before
// goes before what the machine says, which decides where that is new or not on record.
func (q boardQuestion) wrong() string {
	of := ""
	if q.Owner.Machine != "" {
		of = ", that of " + q.Owner.Machine
	}
	if q.Known == nil {
		if q.itself(q.Now.UUID) || of == "" && (q.Agent.shares(q.Now) || q.Declared.shares(q.Now)) {
			return ""
		}
		for _, own := range []struct {
			words string
			Board
		}{{"the machine is declared with", q.Declared}, {"the machine says", q.Agent}} {
			if serial, uuid, _ := own.differ(q.Now); serial || uuid {
				return fmt.Sprintf("the BMC is on another board%s: it says %s, %s %s", of, q.Now.text(), own.words, own.text())
			}
		}
		if of != "" {
			return fmt.Sprintf("the BMC is on another board%s: it says %s", of, q.Now.text())
		}
		return ""
	}
	serial, uuid, service := q.Known.differ(q.Now)
	switch {
	case !serial && !uuid && !service:
		if q.Known.named() && !q.Now.named() && q.Known.URL != "" && q.Known.URL != q.Now.URL {
			return fmt.Sprintf("the BMC does not say which board it is on, and the one before, behind %s, said %s", q.Known.URL, q.Known.text())
		}
		// A first deployment may have put on record what two exchanged BMCs said.
		later := q.Known.By == "" || q.Known.At.Before(q.Owner.Since)
		if of != "" && later && !q.itself(q.Now.UUID) {
			return fmt.Sprintf("the BMC is on another board%s: it says %s, the machine says %s", of, q.Now.text(), q.Agent.text())
		}
		return ""
	case uuid && q.itself(q.Now.UUID), serial && !uuid && (q.Now.Serial == q.Agent.Serial || q.Now.Serial == q.Declared.Serial):
		return "" // what is new is what the machine says, or who declared it
	}
	return fmt.Sprintf("the BMC is on another board%s: %s", of, q.Known.other(q.Now))
}

// itself tells whether a UUID is the machine's by its own word or its declaration.
func (q boardQuestion) itself(uuid string) bool {
	return inventory.UsableUUID(uuid) && (sameUUID(q.Agent.UUID, uuid) || sameUUID(q.Declared.UUID, uuid))
}

// boardQuestion about what a BMC says of the machine's board.
func (s State) boardQuestion(declared, now Board, owner boardOwner) boardQuestion {
	q := boardQuestion{Known: s.Status.Board, Now: now, Declared: declared, Owner: owner}
	if f := s.Status.Facts; f != nil {
		q.Agent = Board{UUID: f.SystemVendor.UUID, Serial: f.SystemVendor.SerialNumber}
	}
	if in := s.Intent; in != nil && in.Live && in.Claim != nil {
		q.Agent = Board{UUID: in.Claim.UUID, Serial: in.Claim.Serial}
	}
	if !inventory.UsableUUID(q.Agent.UUID) {
		q.Agent.UUID = ""
	}
	q.Agent, q.Declared = q.Agent.usable(), q.Declared.usable()
	return q
}

// boardOwner finds the machine whose own word the UUID is that a BMC told of its board.
func (e *Engine) boardOwner(name string, now Board) (o boardOwner) {
	if !inventory.UsableUUID(now.UUID) {
		return o
	}
	set := e.Set()
	for _, uuid := range []string{now.UUID, swappedUUID(now.UUID)} {
		for _, other := range e.uuids.who(uuid) {
			if other == name || set.Machine(other) == nil {
				continue
			}
			o = boardOwner{Machine: other, Since: e.Now()} // it claims just now
			if m, ok := e.known(other); ok {
				if st := m.committed().Status; st.Facts != nil && sameUUID(st.Facts.SystemVendor.UUID, now.UUID) {
					o.Since = st.FactsAt
				}
			}
			return o
		}
	}
	return o
}

// Identified: its BMC was asked which board it is on.
type Identified struct {
	Board Board
	Owner boardOwner
}

func (Identified) event() {}

func (t *transition) identified(ev Identified) {
	if ok := t.boardSeen(ev.Board, ev.Owner); ok && t.busy() && t.Status.Step == StepArming {
		board := ev.Board
		t.Intent.Board = &board // what the machine says of itself is held against it
	}
}

// boardSeen keeps the board, or says that it is not the machine's.
func (t *transition) boardSeen(now Board, owner boardOwner) (right bool) {
	st := &t.Status
	if why := t.boardQuestion(t.p.Declared, now, owner).wrong(); why != "" {
		t.noticed(Noticed{About: boardPrefix, Finding: boardPrefix + why + ": " + boardNext(st.Machine)})
		return false
	}
	st.Findings = dropFindings(st.Findings, boardPrefix)
	if !now.named() && now.BMC == "" {
		return true // nothing to know it by
	}
	next := now
	if st.Board != nil {
		if serial, uuid, _ := st.Board.differ(now); !serial && !uuid { // some tell less at times
			next = *st.Board
			next.URL = now.URL
			for _, f := range []struct {
				to   *string
				from string
			}{{&next.UUID, now.UUID}, {&next.Serial, now.Serial}, {&next.BMC, now.BMC}} {
				if f.from != "" {
					*f.to = f.from
				}
			}
		}
	}
	if st.Board == nil || *st.Board != next {
		st.Board = &next
	}
	return true
}

// aboutBoard are the findings on the board, which a new attempt does not answer.
func (t *transition) aboutBoard() (out []string) {
	for _, f := range t.Status.Findings {
		if t.p.HasBMC && strings.HasPrefix(f, boardPrefix) {
			out = append(out, f)
		}
	}
	return out
}

// boardNext is what a person does about it.
func boardNext(machine string) string {
	return "correct bmc.url and apply, or where it is the machine's: recast bmc enrol " + machine
}

// enrolled: the board that the BMC is on is right, whichever it is.
func (t *transition) enrolled(ev Enrolled) {
	t.noticed(Noticed{About: exposurePrefix, Finding: ev.Finding})
	t.Status.Board, t.Status.Findings = nil, dropFindings(t.Status.Findings, boardPrefix)
	if b := ev.Board; b.named() || b.BMC != "" {
		b.At = t.now
		t.Status.Board = &b
	}
}

// errOtherBoard: the BMC may be another machine's, and was told nothing.
var errOtherBoard = errors.New("nothing was switched")

// rightBoard asks a BMC which board it is on, keeps what it says, and is nil unless that
// is not the machine's.
func (e *Engine) rightBoard(ctx context.Context, m *machine, decl *inventory.Machine, c bmc.Client) (Board, error) {
	now := Board{URL: decl.BMC.URL}
	if d, ok := c.(bmc.Describer); ok {
		id, err := d.Identity(ctx)
		known := m.snapshot().Status.Board
		switch {
		case err == nil:
			now = boardOf(id, decl.BMC.URL)
		case errors.Is(err, bmc.ErrUnsupported):
		case errors.Is(err, bmc.ErrRejected) && (known == nil || !known.named()): // it never told
		default:
			return now, fmt.Errorf("ask the BMC which board it is on: %w", err)
		}
	}
	owner := e.boardOwner(m.name, now)
	why := m.snapshot().boardQuestion(e.params(m.name).Declared, now, owner).wrong()
	if err := e.handle(ctx, m, Identified{Board: now, Owner: owner}); err != nil {
		return now, err
	}
	if why != "" {
		m.boardDue = time.Time{}
		return now, fmt.Errorf("%w: %s", errOtherBoard, why)
	}
	return now, nil
}

// boardTry is the attempt and the bmc.url that a board was compared for.
type boardTry struct {
	url     string
	created time.Time
	attempt int
}

// mayTell is nil where a BMC may be told an action of an attempt: it is on the machine's
// board. That is asked before each power off, once in an attempt for what follows, and
// always where the boot itself is to say which machine it is.
func (e *Engine) mayTell(ctx context.Context, m *machine, decl *inventory.Machine, c bmc.Client, a Action, s State) error {
	if s.Intent == nil {
		return nil
	}
	try := boardTry{decl.BMC.URL, s.Intent.Created, s.Status.Attempt}
	if a != ActOff && try == m.boardTry && (a != ActArm || s.Intent.Via == "") {
		return nil
	}
	m.boardTry = boardTry{}
	if _, err := e.rightBoard(ctx, m, decl, c); err != nil {
		return err
	}
	m.boardTry = try
	return nil
}

var errBoard = errors.New("not switched on")

// sameBoard is nil where the BMC says that it is on the board that is on record. One
// that says nothing of it could be any.
func (e *Engine) sameBoard(ctx context.Context, m *machine, decl *inventory.Machine, c bmc.Client) error {
	known := m.snapshot().Status.Board
	if known == nil {
		return fmt.Errorf("%w: which board the BMC is on is not on record", errBoard)
	}
	now, err := e.rightBoard(ctx, m, decl, c)
	switch {
	case errors.Is(err, errOtherBoard):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errBoard, err)
	case !known.shares(now):
		return fmt.Errorf("%w: the BMC does not say which board it is on", errBoard)
	}
	return nil
}
