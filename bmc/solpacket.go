package bmc

// solPacket is one packet of serial over LAN (IPMI 2.0, 15.9).
type solPacket struct {
	seq      byte // 1-15; 0 acknowledges alone
	ack      byte // the other side's packet that is acknowledged; 0 none
	accepted byte // characters taken of it
	// what is operations on the way to the BMC, status on the way back.
	what byte
	text []byte
}

// Bits of solPacket.what.
const (
	solBreak   = 1 << 4 // to the BMC: generate a break
	solOver    = 1 << 4 // from the BMC: the payload is being deactivated
	solOverrun = 1 << 3 // from the BMC: characters were lost before this packet
)

const solHeader = 4

func (p solPacket) pack() []byte {
	return append([]byte{p.seq & 0x0f, p.ack & 0x0f, p.accepted, p.what}, p.text...)
}

func parseSOL(raw []byte) (solPacket, error) {
	if len(raw) < solHeader {
		return solPacket{}, badSOL
	}
	return solPacket{seq: raw[0] & 0x0f, ack: raw[1] & 0x0f, accepted: raw[2], what: raw[3], text: raw[solHeader:]}, nil
}

// solLine is one side of the conversation, ours: which packet is on its way, and
// what of the BMC's was seen. It decides; its caller sends and waits.
type solLine struct {
	// To the BMC, one packet at a time.
	seq    byte
	flying bool
	sent   solPacket
	// From the BMC.
	begun bool
	seen  byte // its last packet
	taken int  // characters of it
}

// solHeard is what a packet of the BMC says.
type solHeard struct {
	text  []byte     // new characters
	reply *solPacket // acknowledges them; nil: nothing to acknowledge
	// landed: the packet that was on its way is answered, and so many of its
	// characters were taken.
	landed bool
	taken  int
	lost   bool // characters of the machine were
	over   bool // the BMC ends the conversation
}

// send is the next packet; there must be none on its way.
func (l *solLine) send(text []byte, what byte) solPacket {
	l.seq = l.seq%15 + 1
	l.sent = solPacket{seq: l.seq, what: what, text: text}
	l.flying = true
	return l.sent
}

// hear takes a packet of the BMC.
func (l *solLine) hear(p solPacket) (h solHeard) {
	h.over, h.lost = p.what&solOver != 0, p.what&solOverrun != 0
	if l.flying && p.ack == l.sent.seq {
		l.flying = false
		h.landed, h.taken = true, min(int(p.accepted), len(l.sent.text))
	}
	if p.seq == 0 {
		return h
	}
	switch ahead := (p.seq + 15 - l.seen) % 15; {
	case !l.begun:
		h.text = p.text
	case ahead == 0:
		// Sent again, since our word on it was lost; it may have grown (15.11).
		if len(p.text) > l.taken {
			h.text = p.text[l.taken:]
		}
	case ahead > 7:
		return h // an old one that was long on its way
	default:
		h.text = p.text
		h.lost = h.lost || ahead > 1
	}
	l.begun, l.seen, l.taken = true, p.seq, len(p.text)
	h.reply = &solPacket{ack: p.seq, accepted: byte(min(len(p.text), 255))}
	return h
}

// solRoom is how many characters a packet to the BMC may hold, by the payload size
// that it told: some tell it in the wrong byte order, others none.
func solRoom(size uint16) int {
	const most, usual = 251, 60
	if swapped := size<<8 | size>>8; size > 1024 && swapped <= 1024 {
		size = swapped
	}
	if size <= solHeader || size > 1024 {
		return usual
	}
	return min(int(size)-solHeader, most)
}
