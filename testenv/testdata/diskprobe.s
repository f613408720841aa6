# A boot sector that writes and reads a sector of each MiB of its disk, and says on the
# first serial port how each ended: "[P wrwr…]", a capital letter where it failed; P is
# the disk's size, A for 1 MiB. Anything said to it restarts the machine from inside.
# diskprobe.bin is made of it by
#   as --32 -o p.o diskprobe.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o diskprobe.bin p.o
	.code16
	.globl _start
_start:	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7c00, %sp
	mov %dl, drive
	mov $'[', %al
	call say
	movw $0x1e, 0x8000      # how large is it? (int 13h, 48h)
	mov $0x8000, %si
	mov $0x48, %ah
	mov drive, %dl
	int $0x13
	mov 0x8010, %eax        # sectors
	shr $11, %eax
	add $'@', %al           # A: 1 MiB, P: 16
	call say
	mov $' ', %al
	call say
	movl $1, mib
1:	movl mib, %eax          # a sector of each MiB is written and read
	shl $11, %eax
	mov %eax, lba
	mov $'w', %bl
	mov $0x4300, %ax
	call disk
	mov $'r', %bl
	mov $0x4200, %ax
	call disk
	incl mib
	cmpl $16, mib
	jb 1b
	mov $']', %al
	call say
	mov $'\n', %al
	call say
2:	mov $0x3fd, %dx         # until somebody says something
	in %dx, %al
	test $1, %al
	jz 2b
	mov $0x3f8, %dx
	in %dx, %al
	mov $0xcf9, %dx         # then a restart from inside
	mov $6, %al
	out %al, %dx
3:	hlt
	jmp 3b

disk:	mov $packet, %si        # says the letter, a capital one where it fails
	movw $1, packet+2       # an error leaves what was transferred there
	mov drive, %dl
	push %bx
	int $0x13
	pop %bx
	mov %bl, %al
	jnc say
	and $0xdf, %al
say:	push %ax
	mov $0x3fd, %dx
4:	in %dx, %al
	test $0x20, %al
	jz 4b
	pop %ax
	mov $0x3f8, %dx
	out %al, %dx
	ret

drive:	.byte 0
mib:	.long 0
packet:	.byte 16, 0
	.word 1, 0x9000, 0
lba:	.long 0, 0
	.org 510
	.word 0xaa55
