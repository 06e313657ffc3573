r"""The grader. With 0/1 rewards it is the training signal: what it calls right is what is learned.

The tables below hold pairs of final answers, `prediction  ~  answer`, separated by `;;` or a new
line; a pair may be broken after its ~. Every pair is tried both ways. Beside them: every reference
answer of the data, 27,000 pairs built from these and compared with Math-Verify (pairs.py),
properties of random answers, text made to harm, 200,000 fuzzed answers, and grading in processes.
"""
import hashlib
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import reward
from reward import is_equivalent, last_boxed
from tasks import TASKS

import pairs
import pytest
from conftest import REAL_DATA, REPO, needs_real_data
from hypothesis import given
from hypothesis import strategies as st

EQUAL = r"""
\frac{1}{\sqrt2}  ~  \dfrac{\sqrt{2}}{2}  ;;  x > 3  ~  (3, \infty)  ;;  1,234  ~  1234
1{,}234  ~  1\!,\!234  ;;  1\,234  ~  1234  ;;  50\%  ~  50  ;;  50\%  ~  0.5  ;;  62.5%  ~  5/8
12_5  ~  12_{5}  ;;  5\text{ cm}  ~  5  ;;  5 cm  ~  5\text{ cm}
5 \text{ centimeters}  ~  5\text{ cm}  ;;  90^\circ  ~  90  ;;  90^\circ  ~  \frac{\pi}{2}
1:2  ~  \frac12  ;;  3:5  ~  6:10  ;;  (3,4)  ~  \begin{pmatrix}3\\4\end{pmatrix}  ;;  2,1  ~  1,2
\{2,1\}  ~  \{1,2\}  ;;  \{1,1,2\}  ~  \{1,2\}  ;;  B  ~  \text{(B)}  ;;  (B)  ~  B
\text{Even}  ~  \text{even}  ;;  even  ~  \text{even}  ;;  Friday.  ~  \text{Friday}
2x-y+3=0  ~  y=2x+3  ;;  y=2x+3  ~  2x+3  ;;  \log_{10}5  ~  \log 5  ;;  \log 5  ~  \ln 5
6\frac16  ~  \frac{37}{6}  ;;  6 1/6  ~  \frac{37}{6}  ;;  -2\frac12  ~  -2.5  ;;  1.0e3  ~  1000
4.5e33  ~  4.5 \times 10^{33}  ;;  4.5 \cdot 10^{33}  ~  4.5e33  ;;  x<2  ~  2>x
\emptyset  ~  \{\}  ;;  \text{no solution}  ~  \emptyset  ;;  1\pm\sqrt2  ~  1+\sqrt2,1-\sqrt2
x = 1 \pm \sqrt{2}  ~  1 + \sqrt 2 \text{ and } 1 - \sqrt 2  ;;  f(x)=2x  ~  2x
f(x)=2x  ~  f(t)=2t  ;;  \mathbb{R}  ~  (-\infty,\infty)  ;;  18  ~  \$18.00
\$18  ~  18 \text{ dollars}  ;;  \text{A, B}  ~  B,A  ;;  \frac12  ~  .5
0.\overline{3}  ~  \frac13  ;;  0.1\overline{6}  ~  1/6  ;;  \frac{\sqrt[3]{4}}{6}  ~  \sqrt[3]{4}/6
(x+1)^2  ~  x^2+2x+1  ;;  \frac{x+1}{2}  ~  \frac x2+\frac12  ;;  \cos(60^\circ)  ~  \frac12
\tan 15^\circ  ~  2-\sqrt3  ;;  e^{i\pi}  ~  -1  ;;  \sqrt{-4}  ~  2i  ;;  2\sin x\cos x  ~  \sin 2x
\sin^2 x+\cos^2 x  ~  1  ;;  \frac{1}{7}\triangle ABC  ~  \triangle ABC/7
x\in[-2,7]  ~  -2\le x\le 7  ;;  -80\leq g(x)\leq 82  ~  [-80,82]
(-\infty,0)\cup(0,\infty)  ~  x\ne0  ;;  (-\infty,0)\cup(0,\infty)  ~  \mathbb{R}\setminus\{0\}
[2,3]\cup[3,5]  ~  [2,5]  ;;  (1,2) , (3,4)  ~  (3,4),(1,2)
-\dfrac{13}{96}, \dfrac{13}{40}  ~  \left(-\frac{13}{96}, \frac{13}{40}\right)
\frac{1}{5}\begin{pmatrix}1\\2\end{pmatrix}  ~  \begin{pmatrix}1/5\\2/5\end{pmatrix}
\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}  ~  \begin{pmatrix}1&2\\3&4\\ \end{pmatrix}
x=5  ~  5  ;;  5=x  ~  5  ;;  x^2+y^2=1  ~  2x^2+2y^2-2=0  ;;  k \geqslant 2  ~  k\ge 2
k \ge 2  ~  [2,\infty)  ;;  4\!:\!51\!:\!06 \text{ p.m.}  ~  4:51:06 PM
\frac{100!}{2^{50}}  ~  100!/2^{50}  ;;  \binom{2n}{n}  ~  \frac{(2n)!}{n!^2}
\lfloor\frac{n}{2}\rfloor + \lceil n/2 \rceil  ~  n  ;;  2^{1009}  ~  2\cdot 2^{1008}
0.56 = 56\%  ~  0.56  ;;  \$\dfrac23 \approx \$0.67  ~  2/3  ;;  \mbox{four}  ~  4
20 \text{ sq units}  ~  20  ;;  x^{\frac12}  ~  \sqrt{x}  ;;  (-8)^{1/3}  ~  -2
\sqrt{12}  ~  2\sqrt3  ;;  7,-2,\text{ and }-5  ~  -5,-2,7  ;;  AB=9, CD=4  ~  CD=4, AB=9
\{x \mid x > 3\}  ~  (3,\infty)  ;;  \{x : x \ne 3\}  ~  (-\infty,3)\cup(3,\infty)
x < -1 \text{ or } x > 1  ~  (-\infty,-1)\cup(1,\infty)  ;;  y^{\prime}+r y-r x(t)=0  ~  y'+ry=rx(t)
\ln 2 + i\pi / 3  ~  \ln(2)+\frac{i \pi}{3}  ;;  (x,y)=(1,2)  ~  (1,2)  ;;  x=1, x=2  ~  1,2
x=\pm 2  ~  2,-2  ;;  \pi/2  ~  π/2  ;;  √2  ~  \sqrt{2}  ;;  −5  ~  -5  ;;  2^{-1}  ~  \frac12
3.0  ~  3  ;;  025  ~  25  ;;  10,000  ~  10000  ;;  \frac{1}{20,\!000}  ~  0.00005
\frac 74,7  ~  7, 7/4  ;;  3i,-3i  ~  \pm 3i  ;;  \left|x\right|  ~  \lvert x\rvert
|{-5}|  ~  5  ;;  5.4 \text{ million}  ~  5400000  ;;  \text{(A) }  ~  A  ;;  \mathrm{A}  ~  A
1+\sqrt{3} i  ~  1 + i\sqrt{3}  ;;  \exp(2x)  ~  e^{2x}  ;;  \arcsin x  ~  \sin^{-1} x
\frac{\pi}{6}+\pi k  ~  \pi k+\pi/6  ;;  120^\circ  ~  2\pi/3  ;;  \sec x  ~  \frac{1}{\cos x}
108, 135  ~  135,108  ;;  -\frac{1}{3}  ~  \frac{-1}{3}  ;;  -\frac{1}{3}  ~  \frac{1}{-3}
\boldsymbol{5}  ~  5  ;;  \textbf{(C)}  ~  C  ;;  sqrt(2)/2  ~  \frac{\sqrt2}{2}  ;;  2*pi  ~  2\pi
x**2+1  ~  x^2+1  ;;  (2,3]  ~  x \in (2,3]  ;;  5, 6  ~  \{5,6\}  ;;  18 apples  ~  18
5 dollars per hour  ~  5  ;;  28 percent  ~  28\%  ;;  28 pct  ~  28\%  ;;  28 percentage  ~  28\%
1 000  ~  1000  ;;  1 234 567  ~  1234567  ;;  1,000.99€  ~  1000.99
19, 46, and 82  ~  19, 46, \text{ and } 82  ;;  12 $ and $ 13  ~  12\text{ and }13
1 - \frac{1}{\mathrm{e}}  ~  1-e^{-1}
F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}  ~  F_n = \sum_{k=0}^{n-1} F_{n-k-1} F_k
\pm 2021  ~  {-2021, 2021}  ;;  x = 5+5+1 = 11  ~  x=11  ;;  x\approx11  ~  11
x=1/3\approx1.3  ~  1/3  ;;  -x > -1  ~  x < 1  ;;  -x >= -1  ~  x <= 1
2x+4y-3=0  ~  y=-\frac{1}{2}x+\frac{3}{4}  ;;  x^2/4 + y^2/3 = 1  ~  x^2/16 + y^2/12 = 1/4
\left[\begin{array}{cc}1 & 2 \\3 & 4\end{array}\right]  ~  \begin{pmatrix}1 & 2 \\3 & 4\end{pmatrix}
\frac{1}{3\sqrt[3]{x}^2}  ~  \frac{1}{3x^{2/3}}
(\begin{pmatrix}\frac{1}{3}\\ \frac{1}{5} \end{pmatrix})  ~  \begin{pmatrix}1/3\\0.2 \end{pmatrix}
\tan^2(y)+1  ~  \sec^2(y)  ;;  {1,3}  ~  (1,3)
\frac{5\sqrt{42}}{27}  ~  \frac{10\sqrt{10.5}}{27}  ;;  n=1, 2, 3  ~  1,2,3
D = (0, 1)  ~  (0,1)  ;;  100%  ~  100  ;;  \frac{270}7\text{ degrees}  ~  \frac{270}{7}
5.4 \text{ cents}  ~  5.4  ;;  \frac{\sqrt{6}-\sqrt{2}}{4}  ~  \sin 15^\circ
\frac{1}{2}\ln 3  ~  \ln\sqrt{3}  ;;  \log_2 8  ~  3  ;;  \log_2(8)  ~  3
\frac{\ln 8}{\ln 2}  ~  3  ;;  \frac{\log 2}{\log 2-\log 3}  ~  \frac{\ln 2}{\ln (2/3)}
e^2  ~  \mathrm{e}^{2}  ;;  \sqrt[3]{54}  ~  3\sqrt[3]{2}  ;;  2^{1/3}  ~  \sqrt[3]{2}
\sqrt{3+2\sqrt2}  ~  1+\sqrt{2}  ;;  3.5\times10^{-3}  ~  0.0035  ;;  3.5e-3  ~  0.0035
3.5*10^-3  ~  0.0035  ;;  10^{-3}  ~  0.001  ;;  2,\!500  ~  2500  ;;  \$2{,}500.00  ~  2500
\frac{x^2-1}{x-1}  ~  x+1  ;;  (x-1)(x+1)(x^2+1)  ~  x^4-1
\frac{1}{x}+\frac{1}{y}  ~  \frac{x+y}{xy}  ;;  (a+b)^2  ~  a^2+2ab+b^2
n(n+1)/2  ~  \frac{n^2+n}{2}  ;;  \frac{n(n+1)}{2}  ~  \binom{n+1}{2}  ;;  k(k+1)  ~  k^2+k
x\in(-\infty,2)\cup(2,\infty)  ~  x\neq 2  ;;  (-\infty,\infty)  ~  \text{all real numbers}
x \le 5  ~  (-\infty, 5]  ;;  x \ge 2 \text{ or } x \le -2  ~  (-\infty,-2]\cup[2,\infty)
2 < x \le 3  ~  (2,3]  ;;  \{x | 2 < x \le 3\}  ~  (2,3]  ;;  \{2,3,5\}  ~  \{5,3,2\}
\{2,3,5\}  ~  2,3,5  ;;  \left(\frac12, \frac{\sqrt3}{2}\right)  ~  (0.5, \sqrt{3}/2)
\langle 1,2,3\rangle  ~  (1,2,3)  ;;  \begin{pmatrix}1\\2\\3\end{pmatrix}  ~  \langle 1,2,3 \rangle
1\pm i  ~  1-i, 1+i  ;;  \frac{-1\pm\sqrt5}{2}  ~  \frac{-1+\sqrt5}2,\frac{-1-\sqrt5}2
1010_2  ~  1010_{2}  ;;  A3_{16}  ~  A3_{16}  ;;  \text{(D)}  ~  D  ;;  \textbf{(D)}  ~  \text{D}
D)  ~  D  ;;  (d)  ~  \text{(D)}  ;;  \text{Monday}  ~  Monday
\text{No solution}  ~  \varnothing  ;;  f(x)=x^2-1  ~  x^2-1  ;;  f(x)=x^2-1  ~  y=x^2-1
f^{-1}(x)=\frac{x+1}{2}  ~  \frac{x+1}{2}  ;;  g(x) = 3x  ~  g(t)=3t  ;;  +\infty  ~  \infty
45^\circ  ~  45 degrees  ;;  45°  ~  \frac{\pi}{4}  ;;  30^\circ, 150^\circ  ~  150,30
\frac\pi3  ~  \pi/3  ;;  \dfrac{\pi}{3}  ~  60^{\circ}
-\frac{\sqrt{3}}{2}  ~  \frac{-\sqrt3}{2}  ;;  \frac{2+\sqrt{3}}{1}  ~  \sqrt3+2  ;;  -(x-1)  ~  1-x
(-1)^n  ~  (-1)^{n+2}  ;;  3\text{ and }4  ~  3, 4  ;;  (3,4) \text{ and } (5,6)  ~  (5,6),(3,4)
\frac{3}{4} \text{ of the cake}  ~  3/4  ;;  7\,000\,000  ~  7000000
1.5\text{ hours}  ~  \frac32  ;;  6 \text{ ft}^2  ~  6
72 \text{ cm}^{2}  ~  72\text{ square centimeters}  ;;  \$0.75  ~  \frac{3}{4}
\frac{3}{4}  ~  75\%  ;;  0.\bar{3}  ~  1/3  ;;  .\overline{09}  ~  1/11
2\sqrt{2}+\sqrt{8}  ~  4\sqrt2  ;;  |2-\sqrt5|  ~  \sqrt5-2  ;;  \left|-3\right|  ~  3
5!  ~  120  ;;  \lfloor 3.7 \rfloor  ~  3  ;;  i^2  ~  -1  ;;  \frac{1+i}{1-i}  ~  i
\cos\frac{\pi}{3}  ~  \frac12  ;;  \cos(\pi/3)  ~  0.5  ;;  \arctan 1  ~  \pi/4
\tan^{-1}(1)  ~  45^\circ  ;;  x^{-1}  ~  \frac1x  ;;  \sqrt{x}\sqrt{x}  ~  x  ;;  e^{\ln 5}  ~  5
\ln(e^3)  ~  3  ;;  4:30  ~  4:30  ;;  4:30 \text{ p.m.}  ~  4:30 PM  ;;  \text{6 cm}  ~  6
y = -2x + 5  ~  2x + y = 5  ;;  y - 3 = 2(x-1)  ~  y=2x+1  ;;  x + y \le 4  ~  4 \ge x+y
x^2 + 3x + 2 = 0  ~  (x+1)(x+2)=0  ;;  (x-3)^2+(y+2)^2=16  ~  x^2+y^2-6x+4y-3=0
a_n = 2n+1  ~  2n+1  ;;  a_{n}=2 n+1  ~  a_n = 1+2n  ;;  \mathbf{5}  ~  5  ;;  \underline{5}  ~  5
\text{5}  ~  5  ;;  5.  ~  5  ;;  5\,  ~  5  ;;  \boxed{5}  ~  5  ;;  5 \;  ~  5
\frac{5}{1}  ~  5  ;;  \frac{\frac12}{\frac13}  ~  \frac32  ;;  2^{3^2}  ~  512
\sqrt[4]{16}  ~  2  ;;  1+2+3  ~  6  ;;  \frac{1}{2}+\frac{1}{3}  ~  \frac56
\frac{1}{2k}\cdot\frac{d!}{(d-k)!}  ~  \frac{d !}{2 k(d-k) !}
\frac{(k-1)!}{2}\binom{d}{k}  ~  \frac{d !}{2 k(d-k) !}  ;;  \frac{n!}{k!(n-k)!}  ~  \binom{n}{k}
\binom{n-1}{k-1}  ~  \frac{(n-1)!}{(k-1)!(n-k)!}  ;;  \frac{n!}{(n-5)!}  ~  n(n-1)(n-2)(n-3)(n-4)
\frac{E_1+2E_2}{3}  ~  \frac{1}{3} E_{1}+\frac{2}{3} E_{2}  ;;  2E_1  ~  E_1+E_1
2P_1P_2  ~  2 P_{1}P_{2}
\begin{pmatrix} \frac{48}{65} \\[6pt] \frac{6}{65} \end{pmatrix}  ~
  \begin{pmatrix} 48/65 \\ 6/65 \end{pmatrix}
\operatorname{arccos}\frac13  ~  \arccos\frac13  ;;  \mathrm{arctan}(2)  ~  \arctan 2
\mathrm{log}_{2} 3  ~  \log_2 3  ;;  111111111  ~  111, \! 111, \! 111
4.6\times10^{-24}\text{ J}  ~  4.6e-24  ;;  T = 5 \text{ K}  ~  5
7.26 \times 10^{6} \, \frac{\text{m}}{\text{s}}  ~  7.26e6  ;;  5 \frac{\text{g}}{\text{cm}^3}  ~  5
4.5 \times 10^{33}\ \mathrm{erg\,s^{-1}}  ~  4.5e33
2.19\times10^{6}\ \text{m}\cdot\text{s}^{-1}  ~  2.19e6  ;;  960^\circ\text{C}  ~  960
45^\circ C  ~  45  ;;  440 sq cm  ~  440\text{ cm}^2  ;;  5 sq. units  ~  5 \text{ square units}
10 \text{ L}  ~  10 \text{ liters}  ;;  5.00\$  ~  \$5  ;;  (2112)_6  ~  2112_6
(152A)_{11}  ~  152A_{11}  ;;  .0011_2  ~  0.0011_2  ;;  x > 3 \text{ and } x < 5  ~  (3,5)
x > 3, x < 5  ~  3<x<5  ;;  x \ge 3 \text{ and } x \neq 5  ~  [3,5)\cup(5,\infty)
x \ge 1 \land x \le 3  ~  [1,3]  ;;  x\in\mathbb{R}, x\neq 3  ~  (-\infty,3)\cup(3,\infty)
x\in\{1,2\}  ~  1,2  ;;  (a,b)\in\{(1,2),(2,1)\}  ~  (1,2),(2,1)
|x|>8  ~  (-\infty,-8)\cup (8,\infty)  ;;  |x|<\sqrt3  ~  (-\sqrt{3}, \sqrt{3})
\{x: |x|<3\}  ~  (-3,3)  ;;  \mathbb{R} - \{3\}  ~  (-\infty,3)\cup(3,\infty)
x < -14 \lor x > -3  ~  (-\infty, -14)\cup(-3,\infty)
(-\infty, -14)\bigcup(-3,\infty)  ~  (-\infty, -14)\cup(-3,\infty)
(-\infty, -14) U (-3, \infty)  ~  (-\infty, -14)\cup(-3,\infty)
f(x) = 2x \text{ for all } x\in\mathbb{R}  ~  f(x)=2 x
f(n) = n \text{ for all } n \in \mathbb{N}  ~  f(n)=n  ;;  f(x)\equiv 1  ~  f(x)=1
(\pm3,\pm2)  ~  (3,2),(-3,2),(3,-2),(-3,-2)  ;;  m_{\text{max}} = n^2-n-1  ~  m_{\max }=n^{2}-n-1
I(0)e^{-t/RC}  ~  I(0) e^{-\frac{t}{R C}}  ;;  G(M+m)  ~  GM+Gm  ;;  mg(h+x)  ~  mgh+mgx
2r_0\sqrt{\pi G\rho_0}  ~  \sqrt{4 \pi G \rho_{0} r_{0}^{2}}
\frac{n!}{2^k k!(n-2k)!}  ~  \binom{n}{2k}\frac{(2k)!}{2^kk!}  ;;  {2n \choose n}  ~  \binom{2n}{n}
{1 \over 2}  ~  \frac12  ;;  m+n=113  ~  113  ;;  f(2)+f(3)=5  ~  5  ;;  |z|=5  ~  5
\sin A=\frac12  ~  \frac12  ;;  a:b = 2:3  ~  2:3
(x,y)=\left(-\frac{13}{96},\frac{13}{40}\right)  ~  -\dfrac{13}{96}, \dfrac{13}{40}
\begin{pmatrix} x \\ y \end{pmatrix} = \begin{pmatrix} 1\\2\end{pmatrix}  ~
  \begin{pmatrix} 1\\2\end{pmatrix}
4:30  ~  \text{4:30 p.m.}  ;;  \text{June } 20  ~  \text{June 20}
\text{(E) ellipse}  ~  (\text{E})  ;;  \textbf{(E)}\ 5  ~  \text{(E)}  ;;  \{A, D\}  ~  \text{A,D}
\text{MR} = \text{SRMC}  ~  MR=SRMC  ;;  \boxed{B}  ~  \text{(B)}  ;;  \mathbf{\frac12}  ~  \frac12
\boldsymbol{(3,4)}  ~  (3,4)  ;;  x⁴+1  ~  x^4+1  ;;  10⁻³  ~  10^{-3}  ;;  x₁  ~  x_1
⅓  ~  \frac13  ;;  30º  ~  30^\circ  ;;  0 \text{ or } x\ge 3  ~  x\ge 3 \text{ or } 0
5 hundred thousand  ~  500000  ;;  14 \text{ right triangles}  ~  14\text{ triangles}
9.8\ \mathrm{m/s^2}  ~  9.8 \text{ m/s}^2
\angle BEA_1=90, \angle AEB_1=90  ~  \angle B E A_{1}=90,\angle A E B_{1}=90
\{x \in \mathbb{R} : x > 3\}  ~  (3,\infty)  ;;  60 mph  ~  60\text{ miles per hour}
33\frac13\%  ~  \frac{100}{3}\%  ;;  33 1/3\%  ~  33\frac13\%  ;;  12\frac12\%  ~  12.5\%
6\frac14\%  ~  0.0625  ;;  67\frac12^\circ  ~  67.5  ;;  \$2\frac12  ~  2.5
x<1 \text{ or } x>3  ~  x\in(-\infty,1)\cup(3,\infty)  ;;  |x|<1  ~  -1<x<1
|x|\le2  ~  x\in[-2,2]  ;;  |x|>1  ~  x<-1 or x>1  ;;  (B) 12  ~  B  ;;  \textbf{(B)}\ 12  ~  B
\textbf{(E) }\frac{25}{8}  ~  E  ;;  B. 12  ~  \text{(B)}  ;;  B. circle  ~  B
x \neq \pm 1  ~  \mathbb{R}\setminus\{-1,1\}  ;;  x\ne\pm1  ~  x\ne1, x\ne-1
Δ+ε  ~  \Delta+\epsilon  ;;  ρgh  ~  \rho gh  ;;  ⌊x⌋  ~  \lfloor x\rfloor
x ⩽ 3  ~  x\le 3  ;;  —5  ~  -5  ;;  ⅛  ~  \frac18  ;;  3 x 10^8  ~  3\times10^8
{1011}_2  ~  1011_2  ;;  1011 base 2  ~  1011_2  ;;  1011\text{ (base 2)}  ~  1011_2
24 hrs  ~  24  ;;  5 lbs  ~  5\text{ pounds}  ;;  3 yrs  ~  3\text{ years}  ;;  45 deg  ~  45^\circ
\pi/4\text{ radians}  ~  45^\circ  ;;  20\ {}^\circ\text{C}  ~  20  ;;  \sqrt{ab}  ~  \sqrt a\sqrt b
(ab)^{1/2}  ~  a^{1/2}b^{1/2}  ;;  \sqrt{\frac mk}  ~  \frac{\sqrt{mk}}{k}
\ln(ab)  ~  \ln a+\ln b  ;;  (0,\infty)\cap(-1,3)  ~  (0,3)  ;;  \R\setminus\{0\}  ~  x\ne 0
(-oo,3)  ~  (-\infty,3)  ;;  2(1,2)  ~  (2,4)  ;;  -(1,2)  ~  (-1,-2)  ;;  \frac12(1,2)  ~  (1/2,1)
\begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}3\\4\end{pmatrix}  ~
  \begin{pmatrix}4\\6\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix}+t\begin{pmatrix}1\\2\end{pmatrix}  ~
  \begin{pmatrix}1+t\\2+2t\end{pmatrix}
+/-3  ~  \pm3  ;;  \coth x  ~  \frac{\cosh x}{\sinh x}  ;;  \operatorname{sech}x  ~  1/\cosh x
\operatorname{arcsinh}(1)  ~  \ln(1+\sqrt2)  ;;  sinx  ~  \sin x
\text{no real solutions}  ~  \emptyset  ;;  5\text{ m/s}  ~  5\text{ m s}^{-1}
x=2,y=1  ~  (2,1)  ;;  1 \text{ or } 2  ~  2, 1
"""
DIFFERENT = r"""
12  ~  12_5  ;;  7  ~  12_5  ;;  12_5  ~  12_6  ;;  5\text{ cm}  ~  5\text{ m}
\$5  ~  5 \text{ cents}  ;;  0.333333  ~  \frac13  ;;  (3,4)  ~  [3,4]  ;;  (2,1)  ~  (1,2)
1,2  ~  1,2,3  ;;  1,1,2  ~  1,2  ;;  x=5  ~  y=5  ;;  x=5  ~  x=6  ;;  \sqrt{x^2}  ~  x
3.14  ~  \pi  ;;  x>3  ~  x<3  ;;  x>3  ~  x\ge 3  ;;  x>3  ~  y>3  ;;  (3,\infty)  ~  [3,\infty)
\text{A}  ~  \text{B}  ;;  \text{even}  ~  \text{odd}  ;;  \text{CBAD}  ~  \text{BCAD}
I(0)  ~  I(0) e^{-t}  ;;  1 + e^{-1000}  ~  1  ;;  \sqrt{10^{100}+1}  ~  10^{50}
\pi + 10^{-100}  ~  \pi  ;;  2^{1009}+1  ~  2^{1009}
\begin{pmatrix}1&2\end{pmatrix}  ~  \begin{pmatrix}1\\2\end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}  ~  \begin{pmatrix}1&3\\2&4\end{pmatrix}
1:03 \text{ PM}  ~  1:03 \text{ AM}  ;;  \frac{1}{23}  ~  \frac{12}{3}  ;;  x^2+1  ~  x^2-1
2x  ~  x^2  ;;  \sin x  ~  \cos x  ;;  108,135  ~  135108  ;;  (1,234)  ~  1234  ;;  1:2  ~  2:1
5 \text{ or } 6  ~  5  ;;  \sqrt{2}  ~  -\sqrt2  ;;  \emptyset  ~  0  ;;  \infty  ~  -\infty
\infty  ~  5  ;;  [0,1]  ~  [0,1)  ;;  (0,1)\cup(2,3)  ~  (0,1)\cup(2,4)
x^2+y^2=1  ~  x^2+y^2=2  ;;  x<y  ~  y<x  ;;  2abcd  ~  2  ;;  5\%  ~  50\%  ;;  50  ~  0.5
\text{two lines}  ~  \text{two points}  ;;  100\%  ~  100^\circ  ;;  1+i  ~  1-i  ;;  n!  ~  n
\frac{a}{b}  ~  \frac{b}{a}  ;;  x=5=6  ~  5  ;;  f(2) < f(1) < f(4)  ~  f(1) < f(2) < f(4)
1, 2, 3, ...  ~  1, 2, 3  ;;  0.28  ~  28  ;;  28/100  ~  28  ;;  7 = 11a+c  ~  11a+c
a+3z=0  ~  0  ;;  2x+z=1  ~  1  ;;  x < 1  ~  x > -1  ;;  (3,1)  ~  {1,3}  ;;  32, 349  ~  32349
\pm 2021  ~  2021  ;;  12:00  ~  1:00  ;;  n=2, 3, 4  ~  n=1, 2, 3  ;;  D=(0,1)  ~  D=(0,1.5)
x+2n+1  ~  x+1  ;;  4  ~  4\sqrt{2}  ;;  2  ~  2^{10}  ;;  \frac{1}{2004!}  ~  \frac{1}{2006!}
\frac{1}{2^{99}}  ~  \frac{1}{2^{98}}  ;;  [0,1)  ~  -[0,1)  ;;  2mg  ~  2  ;;  3x  ~  3
5ab  ~  5  ;;  5a  ~  5  ;;  m  ~  1  ;;  5 x  ~  5  ;;  3 \pi  ~  3  ;;  2\theta  ~  2
4e  ~  4  ;;  3i  ~  3  ;;  2\mathrm{e}  ~  2  ;;  3\mathrm{i}  ~  3
10\text{ m}  ~  10\text{ km}  ;;  (1,2)  ~  (1,2,3)  ;;  (1,2),(3,4)  ~  (1,2),(4,3)
1,2,2  ~  1,1,2  ;;  \{1,2\}  ~  \{1,2,3\}  ;;  x=1  ~  x=-1  ;;  x^2  ~  x^3  ;;  \sqrt{x}  ~  x
\frac{x}{y}  ~  \frac{y}{x}  ;;  a+b  ~  a-b  ;;  ab  ~  a+b  ;;  (x+1)^2  ~  x^2+1
\sin x  ~  \sin 2x  ;;  \log_2 x  ~  \log_3 x  ;;  (0,1)  ~  (0,1]  ;;  x\ge0  ~  x>0
f(x)=2x  ~  f(x)=3x  ;;  f(x)=2x  ~  f(t)=2x  ;;  y=2x  ~  x=2y  ;;  A  ~  B
\text{A}  ~  \text{C}  ;;  AB  ~  AC  ;;  yes  ~  no  ;;  \text{true}  ~  \text{false}
none  ~  all  ;;  5  ~  -5  ;;  5  ~  5.0001  ;;  0.5  ~  0.05  ;;  1e5  ~  1e6  ;;  1/2  ~  2
10  ~  010_2  ;;  12_{5}  ~  21_{5}  ;;  x\neq 2  ~  x = 2  ;;  x \in \{1,2\}  ~  (1,2)
\emptyset  ~  \{\emptyset, 1\}  ;;  n!  ~  (n+1)!  ;;  \binom{n}{2}  ~  \binom{n}{3}
\lfloor x \rfloor  ~  \lceil x \rceil  ;;  x  ~  -x  ;;  |x|  ~  x
\begin{pmatrix}1\\2\end{pmatrix}  ~  \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}1&0\\0&1\end{pmatrix}  ~  1  ;;  (1,2)  ~  1,3  ;;  4:30 AM  ~  4:30 PM  ;;  5  ~  ?
5  ~  \text{I don't know}  ;;  1,2  ~  12  ;;  1 2  ~  12  ;;  2 3  ~  6
3.14159265358979  ~  \pi  ;;  1.41421356  ~  \sqrt2  ;;  \frac13  ~  0.33333333333333333333
100000000000000000001  ~  100000000000000000000  ;;  0.1  ~  0.1000000000000000000001
10^{100}+1  ~  10^{100}  ;;  e^{\pi\sqrt{163}}  ~  262537412640768744
\text{not even}  ~  \text{even}  ;;  5 \text{ or more}  ~  5  ;;  x=5, y=6  ~  x=6, y=5
y=|x|  ~  y=x  ;;  |x|+|y|=1  ~  x+y=1  ;;  y<|x|  ~  y<x  ;;  y=\sqrt{x^2}  ~  y=x
y=|x-5|  ~  y=5-x  ;;  y=\lfloor x/3\rfloor  ~  y=0
x>3 \text{ and } x<5  ~  x>3 \text{ or } x<5  ;;  x<1 \text{ and } x>2  ~  (-\infty,1)\cup(2,\infty)
[1,4]  ~  1,4  ;;  [0,1)  ~  0,1  ;;  (1,2),(3,4)  ~  (1,2)\cup(3,4)  ;;  x=2,y=1  ~  1,2
f(x)=x+1, g(x)=x-1  ~  x-1, x+1  ;;  f(3)=2  ~  y=2  ;;  1/3 \approx 5  ~  5
5 \approx 6 \approx 7  ~  7  ;;  x^2=9  ~  9  ;;  y^{-1}=4  ~  4  ;;  4 squared  ~  4
12 \text{ factorial}  ~  12  ;;  3 halves  ~  3  ;;  20\% \text{ increase}  ~  20\% \text{ decrease}
5 \text{ minus } x  ~  5  ;;  5 \text{ is wrong}  ~  5  ;;  5 \text{ is not the answer}  ~  5
3n \text{ for odd } n  ~  3n \text{ for even } n  ;;  100 \text{ if } n \text{ is even}  ~  100
3 \text{ m/s}  ~  3\text{ m}  ;;  3 \text{ m/s}  ~  3\text{ km/h}  ;;  3 mph  ~  3 km/h
\{2x : x > 3\}  ~  \{x : x > 3\}  ;;  \{2k: k\in\mathbb{Z}\}  ~  \{3k : k\in\mathbb{Z}\}
\{n \in \mathbb{N} : n>3\}  ~  (3,\infty)  ;;  -\text{A}  ~  \text{A}  ;;  -abcd  ~  abcd
P(2)  ~  2P  ;;  2:30  ~  1:15  ;;  \ln(x^2)  ~  2\ln x  ;;  \lfloor x\rfloor  ~  \lceil x\rceil-1
2025!  ~  2025!+1  ;;  2^{30000}  ~  2^{30000}+1  ;;  \frac{2^{30000}-1}{3}  ~  \frac{2^{30000}}{3}
1-2^{-20240}  ~  1  ;;  TEN  ~  NET  ;;  \angle ABC  ~  \angle BAC  ;;  \{1:2\}  ~  2
n!!  ~  (n!)!  ;;  \pi(r)  ~  \pi  ;;  \arccos(\cos x)  ~  \left|x\right|  ;;  33\frac13\%  ~  11\%
67\frac12^\circ  ~  33.5^\circ  ;;  \$2\frac12  ~  1  ;;  (A) and (B)  ~  (A)  ;;  (A), (C)  ~  (A)
\text{(A) or (B)}  ~  A  ;;  (A)(C)  ~  \text{(A)}  ;;  (A) is wrong  ~  (A)
(C)^2  ~  \text{(C)}  ;;  y=2, x=3  ~  (2,3)  ;;  b=1, a=2  ~  (1,2)  ;;  5 or 6  ~  (5,6)
x=1 or x=2  ~  (1,2)  ;;  x>3, x \in \mathbb{Z}  ~  x>3
k\pi, k\in\mathbb{Z}  ~  k\pi, k\in\mathbb{N}  ;;  |x+3|  ~  x+3  ;;  |x+50|  ~  x+50
|x-50|  ~  50-x  ;;  y=|x+50|  ~  y=x+50  ;;  |\theta|  ~  \theta  ;;  \binom{n}{45}  ~  0
\lfloor\frac{n}{100}\rfloor  ~  0  ;;  5\text{ m s}  ~  5\text{ m/s}
5\text{ cm/s}  ~  5\text{ s/cm}  ;;  5\text{ miles per hour}  ~  5\text{ hours per mile}
5\text{ s}^{-1}  ~  5\text{ s}  ;;  5\text{ m}^{-2}  ~  5\text{ m}^2  ;;  5\text{ tenths}  ~  5
5\text{ at most}  ~  5  ;;  5 incorrect  ~  5  ;;  5\text{ negative}  ~  5
x > 1  ~  x \ge 1, x \ne 2  ;;  (0,\infty)\cap(-1,3)  ~  (-1,3)  ;;  -(1,2)  ~  (1,2)
"""


def table(text):
    return [tuple(re.split(r"\s+~\s+", pair))
            for pair in re.split(r"\s+;;\s+|(?<!  ~)\n", text.strip())]


@pytest.mark.parametrize("a, b", table(EQUAL))
def test_equal(a, b):
    assert is_equivalent(a, b) is True and is_equivalent(b, a) is True


@pytest.mark.parametrize(
    "a, b", [*table(DIFFERENT), ("", ""), ("", "0"), (" ", " "), ("$$", "$$ $$")])
def test_different(a, b):
    assert is_equivalent(a, b) is False and is_equivalent(b, a) is False


# ---- rewards of responses ------------------------------------------------------------------------

@pytest.mark.parametrize("response, answer", [
    ("7+6=13\n#### 72", "72"), ("#### 72.0", "72"), ("#### $72", "72"), ("#### 72 apples", "72"),
    ("#### 72.", "72"), ("####72", "72"), ("#### 72\n#### 5", "72"), ("#### 1,200", "1200"),
    ("#### $1,200.00", "1200"), ("#### -5", "-5"), ("#### - $5", "-5")])
def test_gsm8k_right(response, answer):
    """The number after the first `####`, by value; the response need not be finished."""
    assert reward.gsm8k(response, answer) == 1.0
    assert reward.gsm8k(response, answer, finished=False) == 1.0


@pytest.mark.parametrize("response", [
    "#### 5\n#### 72", "#### -72", "#### 720", "#### 72.5", "#### 72/2", "#### 72.5/2",
    "#### 72.5e3", "#### 72^2", "#### 72,000/3", "72", "#### ", "", "#### seventy-two"])
def test_gsm8k_wrong(response):
    assert reward.gsm8k(response, "72") == 0.0


@pytest.mark.parametrize("response, answer", [
    (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), (r"\fbox{7}", "7"), (r"\boxed {7}", "7"),
    (r"\boxed 5", "5"), (r"$\boxed 5$ is it", "5"), (r"\boxed{1} no, \boxed{2}", "2"),
    (r"\boxed{2} is what we wanted. So 3.", "2"), (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{\{1, \{2\}\}}", r"\{1, \{2\}\}"), (r"\boxed{[0, 1\}}", r"[0, 1\}"), (r"\boxed{}", ""),
    (r"\boxed{5", None), (r"\boxed{4} or rather \boxed{5", None), (r"\boxed", None),
    (r"\boxed5", None), ("the answer is 5", None), ("", None),
    (r"\boxed{\text{if } x}", r"\text{if } x"), ("\\boxed{\n5\n}", "\n5\n")])
def test_last_boxed(response, answer):
    assert last_boxed(response) == answer


def test_math_wants_a_closed_box_and_an_end():
    assert reward.math(r"so \boxed{\frac{1}{2}}.", r"\frac12") == 1.0
    assert reward.math(r"so \boxed{\frac{1}{2}}", r"\frac12", finished=False) == 0.0
    assert reward.math(r"\boxed{2", "2") == 0.0
    assert reward.math(r"\boxed{}", "") == 0.0
    assert reward.math("2", "2") == 0.0


def test_math_takes_the_last_box():
    """Of a response, and of the reference solution from which tasks.py takes the answer."""
    text = r"At first \boxed{1}, but the sign was wrong, so \boxed{2}."
    assert reward.math(text, "2") == 1.0
    assert reward.math(text, "1") == 0.0
    assert TASKS["math"].row({"problem": "?", "solution": text})["answer"] == "2"


# ---- real answers --------------------------------------------------------------------------------

@needs_real_data
@pytest.mark.parametrize("task, function", [("gsm8k", reward.gsm8k), ("math", reward.math)])
def test_reference_solutions_earn_the_reward(task, function):
    """Every reference solution of GSM8K and MATH, train and test, is right as a response."""
    for split in ("train", "test"):
        lines = (REAL_DATA / task / f"{split}.jsonl").read_text().splitlines()
        rows = [TASKS[task].row(json.loads(line)) for line in lines]
        with_answer = [row for row in rows if row["answer"]]
        without = len(rows) - len(with_answer)
        assert without == (2 if (task, split) == ("math", "train") else 0)
        assert not [row["answer"] for row in with_answer
                    if function(row["solution"], row["answer"]) != 1.0]


@needs_real_data
def test_reference_answers_equal_themselves():
    """Each as it is, and in other white space; and as its solution has it in a box."""
    answers = pairs.reference_answers(REAL_DATA)
    assert len(answers) > 4900
    assert not [a for a in answers if not is_equivalent(a, a) or not is_equivalent(f" ${a}$ ", a)]
    for name in ("math500", "minerva_math"):
        for row in map(json.loads, open(REAL_DATA / f"{name}.jsonl")):
            assert is_equivalent(last_boxed(row["solution"]), row["answer"])


@pytest.mark.slow
@needs_real_data
def test_pairs_built_from_real_answers():
    """At least 99.9% are right, and no wrong answer is called right."""
    built = pairs.pairs(REAL_DATA)
    assert len(built) >= 20_000
    wrong = [pair for pair in built if is_equivalent(*pair[1:3]) != pair[3]]
    assert len(wrong) <= 0.001 * len(built) and not [pair for pair in wrong if not pair[3]]


@pytest.mark.slow
@needs_real_data
def test_against_math_verify():
    """In no kind of answer are fewer right than by Math-Verify: of every 20th pair, for it is
    slow. bench/grader.py compares all."""
    right = defaultdict(int)
    for name, prediction, answer, equal in pairs.pairs(REAL_DATA)[::20]:
        right[name] += is_equivalent(prediction, answer) == equal
        right[name] -= pairs.math_verify(prediction, answer) == equal
    assert len(right) > 5 and min(right.values()) >= 0 and sum(right.values()) > 0


# ---- properties ----------------------------------------------------------------------------------

rationals = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=1000)


def latex(x):
    if x.denominator == 1:
        return str(x)
    return f"{'-' * (x < 0)}\\frac{{{abs(x.numerator)}}}{{{x.denominator}}}"


def mixed(x):
    if x.denominator == 1 or abs(x) < 1:
        return latex(x)
    whole, rest = divmod(abs(x), 1)
    return f"{'-' * (x < 0)}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}"


def thousands(x, separator):
    return f"{x.numerator:,}".replace(",", separator) if x.denominator == 1 else latex(x)


SPELLINGS = [
    latex,
    mixed,
    lambda x: f"${latex(x)}$",
    lambda x: latex(x).replace("\\frac", "\\dfrac"),
    lambda x: f"\\left({latex(x)}\\right)",
    lambda x: f"{x.numerator}/{x.denominator}",
    lambda x: f"\\frac{{{x.numerator * 7}}}{{{x.denominator * 7}}}",
    lambda x: f"x = {latex(x)}",
    lambda x: f"{latex(x)}.",
    lambda x: f" \\! {latex(x)} \\, ",
    lambda x: f"\\text{{{x}}}",
    lambda x: f"{latex(x - 1)} + 1",
    lambda x: f"{latex(2 * x)} / 2",
    lambda x: f"{x.numerator} \\cdot {x.denominator}^{{-1}}",
    *(lambda x, separator=s: thousands(x, separator) for s in (",", "{,}", "\\!,\\!", "\\,"))]
WITH_UNIT = [
    lambda x: f"{latex(x)} \\text{{ cm}}",
    lambda x: f"\\${latex(x)}",
    lambda x: f"{latex(x)}^\\circ",
    lambda x: f"{latex(x)}\\%",
    lambda x: f"{latex(x)} \\text{{ apples}}"]
plain, with_unit = st.sampled_from(SPELLINGS), st.sampled_from(WITH_UNIT)
# Pairs of spellings. Any two of the atoms are linearly independent over the rationals: sums of them
# are equal only if their coefficients are.
ATOMS = [
    ("1", "1"), ("\\sqrt2", "2^{1/2}"), ("\\sqrt{3}", "\\frac{3}{\\sqrt{3}}"),
    ("\\sqrt{6}", "\\sqrt2\\sqrt3"), ("\\pi", "{\\pi}"), ("i", "\\sqrt{-1}"), ("e", "\\exp(1)"),
    ("\\ln 2", "\\frac{\\ln 4}{2}"), ("x", "(x)"), ("x^2", "x \\cdot x"), ("y", "\\frac{y^2}{y}"),
    ("xy", "yx"), ("\\sin x", "\\cos(\\frac{\\pi}{2}-x)")]
IN_ORDER = range(len(ATOMS))
coefficients = st.lists(st.integers(-9, 9), min_size=len(ATOMS), max_size=len(ATOMS)).filter(any)


def combination(numbers, spelling, order=IN_ORDER):
    """Sum of number * atom, as LaTeX."""
    text = ""
    for n, atom in ((numbers[i], ATOMS[i][spelling]) for i in order if numbers[i]):
        text += ("-" if n < 0 else "+" * bool(text)) + f"{abs(n)}"
        text += f" {{{atom}}}" if atom != "1" else ""
    return text


@given(rationals, plain, plain, with_unit)
def test_spelling_does_not_matter(x, one, other, unit):
    assert is_equivalent(one(x), other(x))
    assert is_equivalent(one(x), unit(x)) and is_equivalent(unit(x), one(x))


@given(rationals, rationals, plain, plain, with_unit)
def test_different_numbers_are_never_equal(x, y, one, other, unit):
    if x != y:
        assert not is_equivalent(one(x), other(y)) and not is_equivalent(other(y), one(x))
        assert not is_equivalent(unit(x), unit(y))
        if unit(x)[-1] not in "%c":  # 50% is 50 and 0.5
            assert not is_equivalent(one(x), unit(y))


@given(st.integers(), st.integers(), st.sampled_from([
    "{}", "\\sqrt{{{}}}", "\\pi + {}", "e^{{{}}}", "2^{{{}}}", "x^{{{}}}", "\\ln {}"]))
def test_different_numbers_inside_formulas(m, n, formula):
    assert is_equivalent(formula.format(m), formula.format(n)) == (m == n)


@given(st.integers(1, 10**6), st.integers(1, 120))
def test_nearly_equal_is_not_equal(n, digits):
    tiny = "0." + "0" * digits + "1"
    for formula in ("{}", "\\sqrt{{{}}}", "\\pi \\cdot {}", "\\ln({} + 1)"):
        assert not is_equivalent(f"{formula.format(n)} + {tiny}", formula.format(n))


@given(coefficients, st.permutations(IN_ORDER))
def test_formulas_in_another_form(numbers, order):
    text, other = combination(numbers, 0), combination(numbers, 1, order)
    assert is_equivalent(text, other) and is_equivalent(other, text)


@given(coefficients, st.sampled_from(IN_ORDER), st.integers(1, 3))
def test_formulas_with_another_coefficient(numbers, i, change):
    changed = [n + change * (k == i) for k, n in enumerate(numbers)]
    if any(changed):
        text, other = combination(numbers, 0), combination(changed, 0)
        assert not is_equivalent(text, other) and not is_equivalent(other, text)


@given(st.lists(rationals, min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_lists_sets_and_tuples(values, rng):
    shuffled_values = rng.sample(values, len(values))
    items, shuffled = [*map(latex, values)], [*map(latex, shuffled_values)]
    text = ", ".join(items)
    for separator in (", ", " ; ", " \\text{ and } "):
        assert is_equivalent(separator.join(shuffled), text)
    assert is_equivalent("\\{" + ", ".join(shuffled) + "\\}", text)
    assert is_equivalent(f"({', '.join(shuffled)})", f"({text})") == (shuffled == items)
    assert not is_equivalent(text, ", ".join([*items[1:], latex(max(values) + 1)]))
    assert not is_equivalent(text, ", ".join(items + items[:1]))


@given(rationals, rationals, st.sampled_from("(["), st.sampled_from(")]"))
def test_intervals_and_inequalities(x, y, left, right):
    if x < y:
        low, middle, high = latex(x), latex((x + y) / 2), latex(y)
        interval = f"{left}{low}, {high}{right}"
        ops = ["<" if left == "(" else "\\le", "<" if right == ")" else "\\leq"]
        assert is_equivalent(f"{low} {ops[0]} x {ops[1]} {high}", interval)
        assert is_equivalent(f"x \\in {interval}", interval)
        halves = f"{left}{low}, {middle}] \\cup ({middle}, {high}{right}"
        assert is_equivalent(halves, f"x \\in {interval}")
        assert not is_equivalent(interval, f"{'[' if left == '(' else '('}{interval[1:]}")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text(a, b):
    assert is_equivalent(a, a) is bool(a.strip())
    assert is_equivalent(a, b) is is_equivalent(b, a)


# ---- text made to harm ---------------------------------------------------------------------------

ENTRIES = "\\\\".join("&".join(f"x_{{{i}}}+{j}y" for j in range(50)) for i in range(50))
HOSTILE = [
    "9^{9^{9^9}}", "2^{2^{2^{2^{2^2}}}}", "e^{e^{e^{e^{e^e}}}}", "1000000!", "(10^{100})!",
    "9!!!!!!", "(7^{7^7})!", r"\frac{1}{0}", r"\binom{10^{10}}{10^9}", r"\sin(10^{10^{10}})",
    "(x+1)^{1000000}", r"(1+\sqrt2)^{1000000}", "x!" * 200, r"\sqrt[999999999]{2}",
    "{" * 10_000 + "1" + "}" * 10_000, "(" * 5000, r"\frac{1}{" * 300 + "2" + "}" * 300,
    r"\text{" * 5000, r"\boxed{" * 2000, "|" * 5000, "a+" * 500_000 + "1", "9" * 15_000,
    "1e999999999", "1e4999", "1" + ",000" * 3000, r"0.\overline{" + "7" * 4000, " " * 15_000 + "2",
    r"\begin{pmatrix}" + ENTRIES + r"\end{pmatrix}", ",".join(map(str, range(4000))), "\\" * 15_000,
    "e " * 9000, r"\{" + ",".join(rf"\sqrt{{{i}}}" for i in range(1500)) + r"\}",
    r"\cup".join(f"({i},{i + 1})" for i in range(1500)), "+".join(["(x+1/3)^{400}"] * 600),
    "\x00\x001", "\ud800\udfff", "(" + ",".join([r"\pm1"] * 40) + ")"]
CODE = [
    "__import__('os').system('touch owned')", "().__class__.__bases__[0].__subclasses__()",
    "exec(\"open('owned','w')\")", "open('owned', 'w')", "eval(compile('1','','eval'))",
    "{1:2}.__class__", "lambda: 0", "Symbol('x')", "f'{1}'", "x;import os", "{{7*7}}",
    "\\input{/etc/passwd}"]


@pytest.mark.parametrize("text", HOSTILE + CODE)
def test_hostile_text_is_just_wrong(text):
    """No crash and no hang: a comparison's budget ends it well before the time limit would."""
    assert not is_equivalent(text, "1") and not is_equivalent("1", text)
    assert is_equivalent(text, text + "1") is is_equivalent(text + "1", text)
    assert reward.math(f"\\boxed{{{text}}}", "1") == 0.0
    assert reward.gsm8k(f"#### {text}", "17") == 0.0


AUDIT = r"""
import json, sys
sys.path.insert(0, sys.argv[1])
import reward
reward.is_equivalent(r"\sin x", r"\cos x + \binom{n}{2}! + \arctan y")  # mpmath's late imports
seen = set()
sys.addaudithook(lambda event, args: seen.add(event))
for a in json.loads(sys.argv[2]):
    for b in json.loads(sys.argv[2]):
        reward.is_equivalent(a, b)
        reward.math(f"\\boxed{{{a}}}", b)
        reward.gsm8k(f"#### {a}", b)
print(json.dumps(sorted(seen)))
"""


def test_nothing_is_run_as_code(tmp_path):
    """Python reports every eval, exec, import, opened file and new process to an audit hook:
    grading causes none."""
    (tmp_path / "audit.py").write_text(AUDIT)
    texts = json.dumps(CODE + ["x = 1", "\\sin x", "1, 2", "(0, 1)", "5!", "2^x"])
    done = subprocess.run([sys.executable, "audit.py", REPO, texts], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not {event.split(".")[0] for event in json.loads(done.stdout)} & {
        "exec", "compile", "import", "open", "os", "subprocess", "socket", "ctypes", "code"}
    assert os.listdir(tmp_path) == ["audit.py"]


PIECES = [*r"""\frac { } ( ) [ ] ^ _ \sqrt 1 23 0 x y n \pi e i + - * / , = < \le \infty \cup \{ \}
| ! % ^\circ \text{ \text{\ cm} \pm & \\ \sin \begin{pmatrix} \end{pmatrix} \log_ \ln \binom
\lfloor \rfloor 99999 e5 . : and or \$ \left( \right) \in \mathbb{R} ² ½ \overline{3} ' \arctan
\setminus f( \cdot \ge \ne \approx \emptyset""".split(), " ", "\x00", "\ud800"]


@pytest.mark.slow
@needs_real_data
def test_fuzz():
    """100,000 comparisons of answers made of pieces or changed at random: nothing is raised, the
    order doesn't matter, and memory doesn't grow."""
    import resource
    answers, rng = pairs.reference_answers(REAL_DATA), random.Random(0)

    def mutated():
        text = list(rng.choice(answers))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) + 1)
            other = rng.choice([rng.choice(PIECES), rng.choice(answers), "".join(text[at // 2:at])])
            text[at:at + rng.randrange(3)] = other
        return "".join(text)[:300]

    def made_of_pieces():
        return "".join(rng.choices(PIECES, k=rng.randint(1, 14)))

    for i in range(50_000):
        a = mutated() if rng.random() < 0.6 else made_of_pieces()
        b = rng.choice((a, mutated(), rng.choice(answers)))
        assert is_equivalent(a, b) is is_equivalent(b, a), (a, b)
        if i == 10_000:
            start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < start + 50_000  # KiB


# ---- grading a batch -----------------------------------------------------------------------------

def test_a_batch_is_graded_as_one_by_one():
    equal = table(EQUAL)
    rows = [{"task": "math", "answer": b} for _, b in equal]
    rows += [{"task": "gsm8k", "answer": "7"}] * 2
    texts = [f"so \\boxed{{{a}}} \ud800" for a, _ in equal] + ["#### 7", "#### 8"]
    truncated = [i % 10 == 3 for i in range(len(rows))]
    graded = reward.grade(rows, texts, truncated)
    assert graded.rewards == [
        reward.reward_of(row["task"])(text, row["answer"], not is_truncated)
        for row, text, is_truncated in zip(rows, texts, truncated, strict=True)]
    assert 0 < sum(graded.rewards) < len(rows)
    assert 0 < sum(graded.inexact) < len(rows) / 2
    assert not any(graded.timed_out)
    assert reward.grade([], [], []) == ([], [], [])


def test_what_a_truncated_response_earns():
    """`math` pays nothing for it, `gsm8k` and `arithmetic` what its number is worth."""
    rows = [{"task": task, "answer": "72"} for task in ("math", "gsm8k", "arithmetic")] * 2
    texts = [r"\boxed{72}", "#### 72", "#### 72"] * 2
    graded = reward.grade(rows, texts, [True] * 3 + [False] * 3)
    assert graded.rewards == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_ranks_grade_a_batch_together(monkeypatch):
    """Three ranks, here threads, get the grades of all seven responses in their order."""
    import lib.distributed
    rows = [{"task": "math", "answer": str(i)} for i in range(7)]
    texts = [rf"\boxed{{{answer}}}" for answer in (0, 9, 2, 9, 4, 9, 6)]
    responses = [SimpleNamespace(text=text, truncated="4" in text) for text in texts]
    parts, everybody = [None] * 3, threading.Barrier(3)

    def start(rank):
        def all_gather(value):
            parts[rank] = value
            everybody.wait()
            return parts
        for name, value in (("rank", rank), ("world_size", 3), ("all_gather", all_gather)):
            monkeypatch.setattr(lib.distributed, name, value)
        return reward.start_grading(rows, responses)

    waiting = [start(rank) for rank in range(3)]
    with ThreadPoolExecutor(3) as ranks:
        graded = list(ranks.map(lambda wait: wait(), waiting))
    assert [g.rewards for g in graded] == [[1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]] * 3
    assert [len(part.rewards) for part in parts] == [3, 2, 2]


def test_the_fingerprint_is_of_both_files_and_of_the_rewards():
    code = (REPO / "reward.py").read_bytes() + (REPO / "lib" / "answers.py").read_bytes()
    rows = [{"task": "math500"}, {"task": "arithmetic"}]
    assert reward.fingerprint(rows) == hashlib.sha256(code + b"['gsm8k', 'math']").hexdigest()


def test_grading_processes_do_not_load_torch():
    """It would cost each of them seconds and memory."""
    subprocess.run([sys.executable, "-c", "import reward, sys; assert 'torch' not in sys.modules"],
                   cwd=REPO, check=True)


HARMFUL = """
import time


def slow(*_):
    while time.process_time() < 3:
        pass
    return 1.0


answer_limit = 0.5
HARMFUL = {"hang": lambda *_: 9 ** 9 ** 9,         # in C code that holds the GIL
           "eat": lambda *_: bytearray(1 << 40),   # more than the memory limit
           "slow": slow,                           # right, but after six times the time limit
           "raise": lambda *_: 1 / 0}


def reward_of(task):
    return HARMFUL.get(task, math)


if __name__ == "__main__":"""


@pytest.fixture
def harmful(tmp_path, monkeypatch):
    """A copy of reward.py with these four tasks."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    source = (REPO / "reward.py").read_text()
    assert source.count('\nif __name__ == "__main__":') == 1
    source = source.replace('\nif __name__ == "__main__":', HARMFUL)
    (tmp_path / "harmful_reward.py").write_text(source)
    spec = importlib.util.spec_from_file_location("harmful_reward", tmp_path / "harmful_reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def processes(module):
    """Ids of the module's grading processes."""
    ps = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in ps.stdout.splitlines() if module.__file__ in line]


def wait_until_none_is_left(module):
    deadline = time.time() + 30
    while processes(module) and time.time() < deadline:
        time.sleep(0.05)
    assert not processes(module)


def test_what_exceeds_a_limit_is_graded_0_and_the_pool_goes_on(harmful, capsys):
    tasks = ["math", "hang", "math", "eat", "slow", "math"] * 3
    rows = [{"task": task, "answer": "5"} for task in tasks]
    graded = harmful.grade(rows, ["\\boxed{5}"] * 18, [False] * 18)
    assert graded.rewards == [float(task == "math") for task in tasks]
    assert graded.timed_out == [task != "math" for task in tasks]
    assert "9 of 18 answers took over 0.5 s" in capsys.readouterr().out
    with pytest.raises(ValueError, match="task raise raised ZeroDivisionError: division by zero"):
        harmful.grade([{"task": "raise", "answer": "5"}], ["5"], [False])
    assert harmful.grade(rows[:1], ["\\boxed{5}"], [False]).rewards == [1.0]
    assert len(processes(harmful)) <= 16  # the old ones have ended


def test_a_process_that_was_killed_between_two_batches_is_replaced(harmful):
    rows = [{"task": "math", "answer": "5"}] * 20
    for _ in range(2):
        graded = harmful.grade(rows, ["\\boxed{5}"] * 20, [False] * 20)
        assert graded.rewards == [1.0] * 20 and not any(graded.timed_out)
        for pid in processes(harmful):
            os.kill(pid, signal.SIGKILL)
        wait_until_none_is_left(harmful)


@pytest.mark.parametrize("end", ["return", "kill"])
def test_no_process_is_left_behind(harmful, tmp_path, end):
    """Neither by a stage that ends nor by one that is killed while an answer hangs."""
    (tmp_path / "stage.py").write_text(r"""
import harmful_reward as r
rows, texts, truncated = [{"task": "math", "answer": "5"}] * 99, ["\\boxed{5}"] * 99, [False] * 99
print(r.grade(rows, texts, truncated).rewards[0], flush=True)
if input() == "kill":
    r.grade([{"task": "hang", "answer": ""}] * 99, texts, truncated)
""")
    stage = subprocess.Popen([sys.executable, "stage.py"], cwd=tmp_path, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    assert stage.stdout.readline() == b"1.0\n"
    assert processes(harmful)
    stage.stdin.write(f"{end}\n".encode())
    stage.stdin.flush()
    time.sleep(0.2)
    if end == "kill":
        stage.send_signal(signal.SIGKILL)
    stage.wait()
    wait_until_none_is_left(harmful)
