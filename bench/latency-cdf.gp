# SPDX-License-Identifier: Apache-2.0
# Draws the distributions in the file `data`, whose data sets are named in `have`; bench/run sets these, subtitle and about.
# Left: how many are done by when. Right: the same turned over, on a logarithmic scale, so that the slowest can be seen.
# Colours are those of Okabe and Ito, which colour-blind people can tell apart; line styles repeat the difference.
set terminal svg size 1200,700 font "sans-serif,14" background "white" enhanced
set logscale x
set xtics nomirror out
set ytics nomirror out
set tics textcolor "#444444"
set border 3 linecolor "#777777"
set grid xtics ytics linecolor "#dddddd" linewidth 0.7

names = "fault.unix.thread fault.tcp.thread peer.fuse peer.zram peer.nbdswap floor.anon floor.uffd.same_core floor.uffd.other_core floor.unix.rtt.spin_both floor.unix.rtt.block floor.tcp.rtt.spin_both floor.tcp.rtt.block"
array title[12] = ["remote page fault, UNIX socket", "remote page fault, TCP loopback", "peer: FUSE mmap of nbdfuse, TCP", "peer: kernel swap to zram, no network", "peer: kernel swap over nbdfuse, TCP", "floor: anonymous fault", "floor: userfault, handler on this core", "floor: userfault, handler on another core", "floor: UNIX round trip, both ends spin", "floor: UNIX round trip, both ends sleep", "floor: TCP round trip, both ends spin", "floor: TCP round trip, both ends sleep"]
array colour[12] = ["#0072b2", "#d55e00", "#cc79a7", "#000000", "#8c564b", "#555555", "#009e73", "#009e73", "#56b4e9", "#56b4e9", "#e69f00", "#e69f00"]
array width[12] = [4, 4, 2.6, 2.6, 2.6, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8]
array dash[12] = [1, 1, 1, 1, 1, 3, 1, 2, 1, 2, 1, 2]
known(i) = strstrt(" ".have." ", " ".word(names, i)." ") > 0
list = ""
do for [i=1:12] { if (known(i)) { list = list." ".i } }

set multiplot
set label 1 "How long a page fault takes when the page is on a memserver" at screen 0.06, 0.955 font ",20"
set label 2 subtitle at screen 0.06, 0.913 textcolor "#444444" noenhanced
set label 3 about at screen 0.985, 0.025 right font ",11" textcolor "#777777" noenhanced

set tmargin at screen 0.865
set bmargin at screen 0.36
set xrange [0.7:500]
set xtics (1, 2, 5, 10, 20, 50, 100, 200, 500)
set xlabel "latency of one page (microseconds, logarithmic)"

unset key
set lmargin at screen 0.085
set rmargin at screen 0.49
set yrange [0:1]
set ytics ("0 %%" 0, "25 %%" 0.25, "50 %%" 0.5, "75 %%" 0.75, "100 %%" 1)
set ylabel "done by then"
plot for [k in list] data index word(names, int(k)) using 1:2 with lines \
	linecolor rgb colour[int(k)] linewidth width[int(k)] dashtype dash[int(k)]

unset label 1
unset label 2
unset label 3
set lmargin at screen 0.585
set rmargin at screen 0.985
set xrange [0.7:20000]
set xtics (1, 10, 100, "1 ms" 1000, "10 ms" 10000)
set logscale y
set yrange [0.0001:1]
set ytics ("1 in 1" 1, "1 in 10" 0.1, "1 in 100" 0.01, "1 in 1,000" 0.001, "1 in 10,000" 0.0001)
set ylabel "slower than that" offset 1
plot for [k in list] data index word(names, int(k)) using 1:3 with lines \
	linecolor rgb colour[int(k)] linewidth width[int(k)] dashtype dash[int(k)]

# A plot without curves holds the legend, so that it may be as wide as the picture.
unset logscale
unset border
unset tics
unset grid
unset xlabel
unset ylabel
set lmargin at screen 0.02
set rmargin at screen 0.98
set tmargin at screen 0.25
set bmargin at screen 0.06
set yrange [0:1]
set key inside center center vertical maxrows 5 Left reverse samplen 2.6 spacing 1.35 width -9 noenhanced
plot for [k in list] NaN with lines linecolor rgb colour[int(k)] linewidth width[int(k)] dashtype dash[int(k)] title title[int(k)]
unset multiplot
